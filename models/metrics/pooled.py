"""Metrics of the pool of all videos' top K predictions, ranked together: GAP and mAP.

Shapes   N videos seen   C classes   K predictions kept of a video
"""

from __future__ import annotations

import numpy as np

from models.metrics.ranking import average_precision, descending
from models.metrics.seen import Seen


def pooled_gap(seen: Seen) -> float:
    """Global average precision: the sum over the hits in the ranked pool of (hits so far / rank), over all positives.

    Positives outside the top K of their video count too. Without positives: 0.
    """
    return average_precision(seen.hits.ravel()[seen.order], int(seen.positives.sum()))


def pooled_gap_at(k: int, seen: Seen) -> float:
    """GAP of the k highest predictions of each video.

    Raises:
        ValueError: k is outside [1, K].
    """
    top_k = seen.scores.shape[1]
    if not 1 <= k <= top_k:
        raise ValueError(f"gap_at must be in [1, {top_k}], the predictions that are kept, but got {k}")
    order = descending(seen.scores[:, :k].ravel())
    return average_precision(seen.hits[:, :k].ravel()[order], int(seen.positives.sum()))


def pooled_mean_average_precision(seen: Seen) -> float:
    """The mean over the classes with a positive of the class's average precision in the ranked pool; 0 without any.

    The sum of precisions of a class is divided by all its positives. (models/metrics/per_class.py has the average
    precision over all videos.)
    """
    hits, classes = seen.hits.ravel()[seen.order], seen.classes.ravel()[seen.order]
    positives_C = seen.positives
    by_class = np.argsort(classes.astype(np.min_scalar_type(len(positives_C))), kind="stable")  # 16 bits: a radix sort
    hits, classes = hits[by_class], classes[by_class]
    counts_C = np.bincount(classes, minlength=len(positives_C))
    starts_C = np.cumsum(counts_C) - counts_C
    found = np.flatnonzero(hits)
    found_classes = classes[found]
    ranks = found - starts_C[found_classes] + 1
    hits_before_C = np.cumsum(np.bincount(found_classes, minlength=len(positives_C)))
    hits_before_C = np.concatenate([[0], hits_before_C[:-1]])
    precisions = (np.arange(len(found)) - hits_before_C[found_classes] + 1) / ranks
    sums_C = np.bincount(found_classes, weights=precisions, minlength=len(positives_C))
    labelled = positives_C > 0
    return float((sums_C[labelled] / positives_C[labelled]).mean()) if labelled.any() else 0.0
