"""Weights of positives, classes and videos in a loss.

positive_weights    of a class's positives, relative to its negatives
class_weights       of a class, positives and negatives alike
*_bootstrap_*       of a video: how often the bootstrap draws it, which draws N of N videos with replacement
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.tensors import as_tensor


def positive_weights(label_counts_C: Any, rated_counts_C: Any, power: float, maximum: float | None = None) -> Tensor:
    """w_c = (N_c / n_c - 1) ** power: a power of the ratio of negatives to positives; lidalei/youtube-8m has 0.5.

    n_c is clipped to [1, N_c - 1], so a class with no positive, or with nothing but positives, has a finite weight
    above 0. A class that is rated for fewer than two videos has the weight 1.

    Args:
        label_counts_C: n_c, number of videos with each class as a label.
        rated_counts_C: N_c, number of videos for which it is rated (models.inputs.rated_counts); or one number for all
            classes.
        power: 0 makes every weight 1.
        maximum: larger weights are cut to it; None: they are not.

    Returns:
        [C] float32.
    """
    rated_C = as_tensor(rated_counts_C).double().clamp(min=2)
    counts_C = as_tensor(label_counts_C).double().clamp(min=1).minimum(rated_C - 1)
    return ((rated_C / counts_C - 1) ** power).clamp(max=maximum if maximum is not None else np.inf).float()


def class_weights(counts_C: Any, power: float) -> Tensor:
    """w_c = (sum_k n_k / (C n_c)) ** power: 1 for a class of average size, more for a rarer class.

    Source: Kyle Chung's weighted hamming loss; power 2 in the notebook, 1 in the module.

    Args:
        counts_C: n_c, number of videos of each class; 0 counts as 1.
        power: 0 makes every weight 1.

    Returns:
        [C] float32.
    """
    counts = as_tensor(counts_C).double().clamp(min=1)
    return ((counts.mean() / counts) ** power).float()


def per_batch_bootstrap_weights(
    batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Bootstrap of one batch: how often each of its B = batch_size videos is drawn in B draws with replacement.

    The draws are made on the generator's device; a CUDA generator saves the copy to a CUDA `device`.

    Returns:
        [B] float32 on `device`, with the sum B; the same generator state gives the same weights.
    """
    draws = torch.randint(batch_size, (batch_size,), generator=generator, device=generator.device).to(device)
    return torch.zeros(batch_size, device=device).index_add_(0, draws, torch.ones(batch_size, device=device))


def fixed_bootstrap_weights(num_videos: int, seed: int) -> Tensor:
    """One bootstrap sample of the data set: how often each of N training videos is drawn in N draws with replacement.

    Returns:
        [N] float32 in the order of the cache, with the sum N: multinomial counts of np.random.default_rng(seed).
    """
    counts = np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1 / num_videos))
    return torch.from_numpy(counts.astype(np.float32))
