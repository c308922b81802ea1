"""Rankings by score, and the average precision of one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def descending(scores: NDArray[Any]) -> NDArray[np.int64]:
    """np.argsort(-scores, kind="stable"); for float32 ten times faster, as a sort of integers that hold their index."""
    if scores.dtype != np.float32:
        return np.argsort(-scores, kind="stable")
    bits = (0 - scores).view(np.int32)  # the bits of floats order like integers, but in reverse below zero
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | np.arange(len(scores))
    keys.sort()
    return keys & 0xFFFFFFFF


def average_precision(hits: NDArray[np.bool_], num_positives: int) -> float:
    """Sum over the hits of a ranked list of (hits so far / rank), divided by num_positives; 0 without positives."""
    ranks = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / max(num_positives, 1))
