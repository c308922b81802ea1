"""Calibration: whether the probabilities of the predictions equal their share of hits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.metrics.seen import Seen


def pooled_calibration_error(seen: Seen) -> float:
    """The calibration error of the K highest predictions of all videos."""
    return calibration_error(seen.scores, seen.hits)


def calibration_error(logits: NDArray[Any], hits: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: the difference between probabilities and shares of hits, in bins of probability.

    sum over bins of (predictions in the bin / all predictions) * |mean probability - share of hits|

    Source: Guo et al., 2017 (arXiv 1706.04599), where an image has one prediction. Over all cells (video, class) it
    would be almost 0 for every model that predicts most classes to be absent: use the best predictions of each video.

    Args:
        logits: of any shape; minus infinity is no prediction (a class that is not rated).
        hits: of the same shape.
        bins: number of bins of equal width.

    Returns:
        In [0, 1]; 0 without a prediction.
    """
    predicted = ~np.isneginf(logits)
    probabilities = torch.from_numpy(logits[predicted]).double().sigmoid().numpy()
    bin_of = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    surplus = np.bincount(bin_of, weights=probabilities - hits[predicted], minlength=bins)  # predicted minus found hits
    return float(np.abs(surplus).sum() / max(len(probabilities), 1))
