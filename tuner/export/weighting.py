"""How much each member of an ensemble counts: greedy selection with replacement, on validation videos.

Members are added one at a time, each time the one that lifts the GAP of the mean most, and again and again; a member's
weight is how often it was taken. Few steps regularise: weights are multiples of 1 / steps, and the best prefix counts.

GAP looks at a video's best 20 predictions, so only classes that are among the best of some member are kept of it:
N x U numbers a member in place of N x C.

Shapes   M members   N videos   U classes kept of a video   C classes
Source   Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble selection from libraries of models (ICML 2004)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_K = 20  # predictions of a video that enter GAP
STEPS = 20  # members that are taken, at least
FOLD_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What the members say of each video about its classes that are among the best of any of them."""

    probabilities_MNU: NDArray[np.float32]  # -1 in the places beyond a video's classes
    hits_NU: NDArray[np.bool_]  # whether the video carries the class
    positives_N: NDArray[np.int64]  # labels of the video, those outside its U classes as well

    def gap(self, weights_NM: NDArray[Any]) -> float:
        """GAP@20 of the weighted mean; the weights may differ from video to video."""
        mean_NU = np.einsum("nm,mnu->nu", weights_NM.astype(np.float32), self.probabilities_MNU)
        return _gap(mean_NU, self.hits_NU, self.positives_N)

    def of(self, rows: NDArray[np.int64]) -> Predictions:
        """Those of some of the videos."""
        return Predictions(
            probabilities_MNU=self.probabilities_MNU[:, rows],
            hits_NU=self.hits_NU[rows],
            positives_N=self.positives_N[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """Weights of the members, and what speaks for them."""

    weights_M: NDArray[np.float64]  # sum to 1
    equal: bool  # the selection was no better than equal weights on videos that it had not seen
    gap_equal: float  # of equal weights on all videos given
    gap_cross_fitted: float  # on the same videos, each half with the weights that the other half chose


def choose(predictions: Predictions) -> Weighting:
    """Weights by greedy selection; equal ones where these do as well on videos that chose none of them."""
    num_members, num_videos = predictions.probabilities_MNU.shape[:2]
    equal_M = np.full(num_members, 1 / num_members)
    shuffled = np.random.default_rng(FOLD_SEED).permutation(num_videos)
    halves = shuffled[: num_videos // 2], shuffled[num_videos // 2 :]
    weights_NM = np.empty((num_videos, num_members))
    weights_NM[halves[0]] = select(predictions.of(halves[1]))
    weights_NM[halves[1]] = select(predictions.of(halves[0]))
    gap_equal = predictions.gap(np.broadcast_to(equal_M, weights_NM.shape))
    gap_cross_fitted = predictions.gap(weights_NM)
    equal = gap_cross_fitted <= gap_equal
    return Weighting(
        weights_M=equal_M if equal else select(predictions),
        equal=equal,
        gap_equal=gap_equal,
        gap_cross_fitted=gap_cross_fitted,
    )


def select(predictions: Predictions) -> NDArray[np.float64]:
    """Weights with the best GAP that greedy selection with replacement came across."""
    probabilities_MNU = predictions.probabilities_MNU
    num_members = len(probabilities_MNU)
    sum_NU = np.zeros_like(probabilities_MNU[0])
    counts_M, best_M, best_gap = np.zeros(num_members), np.zeros(num_members), -1.0
    for _ in range(max(STEPS, 2 * num_members)):
        gaps_M = [_gap(sum_NU + one_NU, predictions.hits_NU, predictions.positives_N) for one_NU in probabilities_MNU]
        taken = int(np.argmax(gaps_M))
        sum_NU += probabilities_MNU[taken]
        counts_M[taken] += 1
        if gaps_M[taken] > best_gap:
            best_M, best_gap = counts_M.copy(), gaps_M[taken]
    return best_M / best_M.sum()


def _gap(scores_NU: NDArray[Any], hits_NU: NDArray[np.bool_], positives_N: NDArray[np.int64]) -> float:
    """GAP@20 of scores that need only rank right: here sums, in which a place beyond a video's classes is negative."""
    kept = min(TOP_K, scores_NU.shape[1])
    best_NK = np.argpartition(-scores_NU, kept - 1, axis=1)[:, :kept]
    scores, hits = (np.take_along_axis(array, best_NK, axis=1).ravel() for array in (scores_NU, hits_NU))
    ranks = np.flatnonzero(hits[np.argsort(-scores, kind="stable")]) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / max(int(positives_N.sum()), 1))
