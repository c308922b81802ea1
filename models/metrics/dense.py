"""Metrics of a whole matrix of scores at once.

Shapes   N videos   C classes
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from models.metrics.accumulator import Accumulator
from models.tensors import as_tensor

CHUNK = 1024  # videos that are ranked at a time


def gap(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor, top_k: int = 20) -> float:
    """GAP = sum_i p(i) dr(i) over the top_k predictions of every video, pooled and ranked by score.

    p(i) is the precision among the first i predictions; dr(i) is 1 / (number of all positives) at a hit, else 0.
    Without positives: 0. Ties as in models/metrics/accumulator.py.

    Args:
        scores_NC: [N, C] float, numpy or torch; logits or probabilities.
        labels_NC: [N, C] of 0/1 or bool.
        top_k: number of predictions of a video that count; 20 in google/youtube-8m.

    Raises:
        ValueError: the shapes differ, a score is NaN, or there is no video.
    """
    return _compute(scores_NC, labels_NC, top_k)["gap"]


def hit_at_1(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor) -> float:
    """The share of the videos whose highest prediction is one of their labels; a video without labels counts as a miss.

    Arguments and errors are those of `gap`.
    """
    return _compute(scores_NC, labels_NC, 1)["hit_at_1"]


def perr(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor) -> float:
    """Precision at equal recall rate: the mean over videos of the precision among the top n_i predictions of video i.

    n_i is the number of its labels; a video without labels has the precision 0, and counts. Arguments and errors are
    those of `gap`.
    """
    return _compute(scores_NC, labels_NC, 20)["perr"]


def mean_average_precision(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor, top_k: int = 20) -> float:
    """The mean over the classes with a positive of the class's average precision in the pool of `gap`.

    The pool holds only the videos among whose top_k predictions the class is; the sum of precisions is divided by all
    positives of the class. Without positives: 0. Arguments and errors are those of `gap`.
    """
    return _compute(scores_NC, labels_NC, top_k)["map"]


def _compute(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor, top_k: int) -> dict[str, float]:
    """The metrics of a dense input, accumulated CHUNK videos at a time."""
    scores = scores_NC if isinstance(scores_NC, Tensor) else np.asarray(scores_NC)
    labels = labels_NC.cpu().numpy() if isinstance(labels_NC, Tensor) else np.asarray(labels_NC)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must both be [videos, classes], but got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    accumulator = Accumulator(scores.shape[1], top_k, loss=False)
    for start in range(0, len(scores), CHUNK):
        scores_BC = as_tensor(scores[start : start + CHUNK])
        rows_L, classes_L = np.divmod(np.flatnonzero(labels[start : start + CHUNK]), scores.shape[1])
        offsets = np.searchsorted(rows_L, np.arange(len(scores_BC) + 1))
        sparse = (torch.from_numpy(array).to(scores_BC.device) for array in (offsets, classes_L))
        accumulator.update(scores_BC, *sparse)
    return accumulator.compute()
