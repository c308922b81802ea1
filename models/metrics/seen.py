"""What the accumulator has kept of all videos: the input of every metric.

Shapes   N videos seen   C classes   K predictions kept of a video
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics.ranking import descending


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A row for each video, in the order seen, and counts of labels."""

    scores: NDArray[Any]  # [N, K] float: the K highest, highest first; minus infinity: a class that is not rated
    classes: NDArray[np.int32]  # [N, K]: their classes
    hits: NDArray[np.bool_]  # [N, K]: whether the class is a label of the video
    perr: NDArray[np.float64]  # [N]: precision among as many predictions as the video has labels
    predicted: NDArray[np.int64]  # [N]: number of classes with a positive logit
    predicted_right: NDArray[np.int64]  # [N]: number of those that are labels of the video
    positives: NDArray[np.int64]  # [C]: number of videos with each class as a label
    loss: NDArray[np.float64] | None = None  # [N]: sigmoid cross-entropy, summed over the rated classes

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[N K]: the pool of all predictions, highest score first; ties by video, then by rank within the video."""
        return descending(self.scores.ravel())
