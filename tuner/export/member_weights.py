"""The weights of an ensemble's members: greedy selection with replacement, on validation videos.

Each step adds the member that raises the GAP of the mean most; a member may be added again. Its weight is the number of
times it was added. Few steps regularise: weights are multiples of 1 / steps, and the best prefix of the steps counts.

GAP uses the 20 best predictions of a video. So for each video only the classes are kept that are among the 20 best of
some member: N x U numbers for each member instead of N x C.

Shapes   M members   N videos   U classes kept of a video   C classes
Source   Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble selection from libraries of models (ICML 2004)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_K = 20  # predictions of a video that count for GAP
MIN_STEPS = 20  # of the greedy selection
FOLD_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPredictions:
    """What every member predicts for the kept classes of each video."""

    probabilities_MNU: NDArray[np.float32]  # -1 in the padding behind a video's kept classes
    hits_NU: NDArray[np.bool_]  # whether the video carries the class
    positives_N: NDArray[np.int64]  # number of the video's labels, including those outside its kept classes

    def gap(self, weights_NM: NDArray[Any]) -> float:
        """GAP@20 of the weighted mean; each video has its own weights [N, M]."""
        mean_NU = np.einsum("nm,mnu->nu", weights_NM.astype(np.float32), self.probabilities_MNU)
        return _gap(mean_NU, self.hits_NU, self.positives_N)

    def take(self, rows: NDArray[np.int64]) -> MemberPredictions:
        """The predictions for some of the videos."""
        return MemberPredictions(
            probabilities_MNU=self.probabilities_MNU[:, rows],
            hits_NU=self.hits_NU[rows],
            positives_N=self.positives_N[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """The weights of the members, and the GAP values that decided between chosen and equal weights."""

    weights_M: NDArray[np.float64]  # their sum is 1
    equal: bool  # equal weights were used, because chosen ones were no better on videos that had not chosen them
    gap_equal: float  # GAP of equal weights, on all given videos
    gap_cross_fitted: float  # GAP on the same videos, where each fold uses the weights that the other fold chose


def choose_weights(predictions: MemberPredictions) -> Weighting:
    """Choose the weights by greedy selection, or equal weights if chosen ones are no better on unseen videos."""
    num_members, num_videos = predictions.probabilities_MNU.shape[:2]
    equal_M = np.full(num_members, 1 / num_members)
    shuffled = np.random.default_rng(FOLD_SEED).permutation(num_videos)
    folds = shuffled[: num_videos // 2], shuffled[num_videos // 2 :]
    weights_NM = np.empty((num_videos, num_members))
    weights_NM[folds[0]] = greedy_weights(predictions.take(folds[1]))
    weights_NM[folds[1]] = greedy_weights(predictions.take(folds[0]))
    gap_equal = predictions.gap(np.broadcast_to(equal_M, weights_NM.shape))
    gap_cross_fitted = predictions.gap(weights_NM)
    equal = gap_cross_fitted <= gap_equal
    return Weighting(
        weights_M=equal_M if equal else greedy_weights(predictions),
        equal=equal,
        gap_equal=gap_equal,
        gap_cross_fitted=gap_cross_fitted,
    )


def greedy_weights(predictions: MemberPredictions) -> NDArray[np.float64]:
    """The weights [M] with the best GAP among all steps of the greedy selection."""
    probabilities_MNU = predictions.probabilities_MNU
    num_members = len(probabilities_MNU)
    sum_NU = np.zeros_like(probabilities_MNU[0])
    counts_M, best_M, best_gap = np.zeros(num_members), np.zeros(num_members), -1.0
    for _ in range(max(MIN_STEPS, 2 * num_members)):
        gaps_M = [_gap(sum_NU + one_NU, predictions.hits_NU, predictions.positives_N) for one_NU in probabilities_MNU]
        added = int(np.argmax(gaps_M))
        sum_NU += probabilities_MNU[added]
        counts_M[added] += 1
        if gaps_M[added] > best_gap:
            best_M, best_gap = counts_M.copy(), gaps_M[added]
    return best_M / best_M.sum()


def _gap(scores_NU: NDArray[Any], hits_NU: NDArray[np.bool_], positives_N: NDArray[np.int64]) -> float:
    """GAP@20 of scores, of which only the order counts; the negative scores of the padding rank last."""
    kept = min(TOP_K, scores_NU.shape[1])
    best_NK = np.argpartition(-scores_NU, kept - 1, axis=1)[:, :kept]
    scores, hits = (np.take_along_axis(array, best_NK, axis=1).ravel() for array in (scores_NU, hits_NU))
    ranks = np.flatnonzero(hits[np.argsort(-scores, kind="stable")]) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / max(int(positives_N.sum()), 1))
