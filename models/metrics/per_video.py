"""Metrics that are computed for each video and averaged over the videos."""

from __future__ import annotations

from models.metrics.seen import Seen


def hit_at_1(seen: Seen) -> float:
    """The share of the videos whose highest prediction is one of their labels; a video without labels is a miss."""
    return float(seen.hits[:, 0].mean())


def perr(seen: Seen) -> float:
    """Precision at equal recall rate: the mean precision among the top n_i predictions, n_i the video's labels.

    A video without labels has the precision 0, and counts.
    """
    return float(seen.perr.mean())


def average_num_classes(seen: Seen) -> float:
    """The mean number of classes with a probability above 1/2."""
    return int(seen.predicted.sum()) / num_videos(seen)


def loss(seen: Seen) -> float:
    """The mean over videos of the binary cross-entropy, summed over the rated classes, without weights.

    Raises:
        ValueError: the accumulator did not keep it.
    """
    if seen.loss is None:
        raise ValueError("the loss needs an accumulator with loss=True, but got one without")
    return float(seen.loss.mean())


def num_videos(seen: Seen) -> float:
    """N."""
    return float(len(seen.scores))
