"""The ranking of the classes of each video of a batch: highest score first, ties by class index.

Shapes   B videos in the batch   C classes   K predictions of a video that are kept
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def rank_by_sorting(logits_BC: Tensor, truth_BC: Tensor, labels_B: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks by a full sort, without a synchronisation with the device.

    CUDA sorts a row of up to 4096 values in one block, so that all classes are ranked and no size depends on the data.

    Args:
        logits_BC: the scores.
        truth_BC: bool, whether the video has the label.
        labels_B: the number of labels of each video.
        top_k: K.

    Returns:
        The classes of the K highest logits [B, K], the precision among as many predictions as the video has labels
        [B], and the number of positive logits [B].
    """
    order_BC = logits_BC.sort(dim=1, descending=True, stable=True).indices
    perr_B = _precision_above(truth_BC.gather(1, order_BC), labels_B)
    return order_BC[:, :top_k], perr_B, (logits_BC > 0).sum(dim=1)


def rank_by_candidates(
    logits_BC: Tensor, truth_BC: Tensor, labels_B: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks on a CPU by the few logits that can be among the top K, 4 times faster than by `rank_by_sorting`.

    Arguments and results are those of `rank_by_sorting`.
    """
    classes_BK = top_classes(logits_BC, top_k)
    perr_B = _precision_above(truth_BC.gather(1, classes_BK), labels_B)
    predicted_B = (logits_BC.gather(1, classes_BK) > 0).sum(dim=1)
    # The few videos with more than K labels or positive logits need more than their K predictions.
    rest = torch.nonzero((labels_B > top_k) | (predicted_B == top_k)).squeeze(1)
    if len(rest):
        _, perr_B[rest], predicted_B[rest] = rank_by_sorting(logits_BC[rest], truth_BC[rest], labels_B[rest], top_k)
    return classes_BK, perr_B, predicted_B


def _precision_above(hits: Tensor, depth_B: Tensor) -> Tensor:
    """The share of hits among the first depth_B ranks of every row; 0 at depth 0."""
    ranks = torch.arange(hits.shape[1], device=hits.device)
    return (hits & (ranks < depth_B[:, None])).sum(dim=1).double() / depth_B.clamp(min=1)


def top_classes(logits_BC: Tensor, top_k: int) -> Tensor:
    """[B, K] classes of the K highest logits of every row, highest first, ties by class index.

    The K-th highest of G >= K group maxima is a lower bound of the K-th highest logit. About 1.1 K candidates of a row
    reach it; two vectorised passes find them (torch.topk processes one logit at a time with a heap).

    Raises:
        ValueError: a logit is NaN.
    """
    num_videos, num_classes = logits_BC.shape
    groups = -(-4 * top_k // 64) * 64  # whole vectors; more groups, fewer candidates
    logits = logits_BC.numpy()
    if num_classes < 2 * groups:
        refuse_nan(logits)
        return torch.from_numpy(np.argsort(-logits, axis=1, kind="stable")[:, :top_k])
    # Group g holds the classes g, g + G, ..., so neighbours, which have similar frequencies, are in different groups.
    grouped = num_classes // groups * groups
    maxima_BG = logits_BC[:, :grouped].reshape(num_videos, grouped // groups, groups).amax(dim=1)
    maxima_BG[:, : num_classes - grouped].clamp_(min=logits_BC[:, grouped:])  # the last, shorter row of neighbours
    refuse_nan(maxima_BG.numpy())
    bound_B1 = np.partition(maxima_BG.numpy(), groups - top_k, axis=1)[:, groups - top_k, None]
    rows, classes = np.divmod(np.flatnonzero(logits >= bound_B1), num_classes)
    counts_B = np.bincount(rows, minlength=num_videos)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    candidates = np.full((num_videos, counts_B.max(initial=top_k)), np.inf, logits.dtype)  # negated: sorted up
    candidates[rows, columns] = -logits[rows, classes]
    candidate_classes = np.zeros(candidates.shape, np.int64)
    candidate_classes[rows, columns] = classes
    best = np.argsort(candidates, axis=1, kind="stable")[:, :top_k]
    return torch.from_numpy(np.take_along_axis(candidate_classes, best, axis=1))


class NotANumber(ValueError):
    """Scores hold a NaN, which ranks and compares above every number."""


def refuse_nan(scores: NDArray[Any]) -> None:
    """Refuses rows of best scores, one for each video, that hold a NaN.

    Raises:
        NotANumber: says in how many videos.
    """
    num_videos = int(np.isnan(scores).any(axis=1).sum())
    if num_videos:
        raise NotANumber(f"logits must be numbers, but got NaN in {num_videos} of {len(scores)} videos")
