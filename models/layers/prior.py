"""Output biases that predict each class at its frequency among the training videos.

Shapes   C classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.inputs import Statistics, rated_counts
from models.tensors import as_tensor


def prior_log_odds(statistics: Statistics) -> Tensor:
    """log((n_c + 1/2) / (N_c - n_c + 1/2)): the log-odds of each class among the videos for which it is rated.

    The halves keep the log-odds finite for a class with no positive, or with nothing but positives.

    Returns:
        [C] float32.

    Raises:
        ValueError: a class is a label of more videos than it is rated for; says which.
    """
    counts_C, rated_C = as_tensor(statistics.label_counts_C).double(), rated_counts(statistics)
    if (wrong_C := (counts_C < 0) | (counts_C > rated_C)).any():
        at = int(wrong_C.int().argmax())
        raise ValueError(f"class {at} is a label of {counts_C[at]:.0f} videos, of {rated_C[at]:.0f} that could have it")
    return ((counts_C + 0.5) / (rated_C - counts_C + 0.5)).log().float()


def start_at_prior(head: nn.Linear, statistics: Statistics) -> None:
    """Sets the biases of an output layer in place, so that it predicts each class at its frequency."""
    with torch.no_grad():
        head.bias.copy_(prior_log_odds(statistics))
