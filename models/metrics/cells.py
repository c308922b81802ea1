"""Precision and recall over all cells (video, class) together, of the classes with a probability above 1/2."""

from __future__ import annotations

from models.metrics.seen import Seen


def precision(seen: Seen) -> float:
    """The share of the predicted cells that are labels; 0 where no cell is predicted."""
    predicted = int(seen.predicted.sum())
    return int(seen.predicted_right.sum()) / predicted if predicted else 0.0


def recall(seen: Seen) -> float:
    """The share of the labels that are predicted; 0 where there is no label."""
    positives = int(seen.positives.sum())
    return int(seen.predicted_right.sum()) / positives if positives else 0.0
