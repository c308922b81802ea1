"""Metrics of each class: its average precision over all videos, and its mean probability.

The mAP of `Accumulator` ranks a class, as google/youtube-8m does, among the videos whose top 20 it is in. Here it is
ranked among all videos for which it is rated. This needs every score: 7 bytes for each cell (video, class), see CELLS.

Shapes   B videos in the batch   C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.metrics.ranking import average_precision, descending
from models.ragged import cells_of

# The most cells to keep: 1.9 GB, or 69,000 videos of 3,862 classes. Of more videos, take a sample.
CELLS = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """The metrics of each class."""

    rated_C: NDArray[np.int64]  # number of videos for which the class is rated
    positives_C: NDArray[np.int64]  # number of videos with the class as a label
    average_precision_C: NDArray[np.float64]  # NaN for a class without positives
    mean_probability_C: NDArray[np.float64]  # over the videos for which it is rated; NaN without any

    @property
    def mean_average_precision(self) -> float:
        """The mean average precision over the classes with a positive; 0 without any."""
        labelled = self.positives_C > 0
        return float(self.average_precision_C[labelled].mean()) if labelled.any() else 0.0


class PerClass:
    """Keeps the score of every rated cell, on the host; ties are ranked in the order in which the videos were seen."""

    def __init__(self, num_classes: int) -> None:
        """Starts without videos; num_classes is at most 32,767."""
        self.num_classes = num_classes
        self._classes: list[NDArray[np.int16]] = []
        self._scores: list[NDArray[np.float32]] = []
        self._hits: list[NDArray[np.bool_]] = []

    def update(
        self,
        logits_BC: Tensor,
        label_offsets: Tensor,
        label_indices: Tensor,
        *,
        rated_offsets: Tensor | None = None,
        rated_indices: Tensor | None = None,
    ) -> None:
        """Adds a batch, and waits for the device; the arguments are those of `Accumulator.update`."""
        truth_BC = cells_of(label_offsets, label_indices, self.num_classes)
        if rated_offsets is None or rated_indices is None:
            rated_BC = torch.ones_like(truth_BC)
        else:
            rated_BC = cells_of(rated_offsets, rated_indices, self.num_classes)
        self._classes.append(rated_BC.nonzero()[:, 1].to(torch.int16).cpu().numpy())
        self._scores.append(logits_BC.detach()[rated_BC].float().cpu().numpy())
        self._hits.append(truth_BC[rated_BC].cpu().numpy())

    def merge(self, other: PerClass) -> None:
        """Adds the videos of another `PerClass`, ranked after those seen so far in case of ties."""
        self._classes += other._classes
        self._scores += other._scores
        self._hits += other._hits

    def compute(self) -> ClassScores:
        """The metrics of each class over all videos seen."""
        classes, scores = np.concatenate(self._classes), np.concatenate(self._scores)
        hits = np.concatenate(self._hits)
        rated_C = np.bincount(classes, minlength=self.num_classes)
        positives_C = np.bincount(classes[hits], minlength=self.num_classes)
        by_class = np.argsort(classes, kind="stable")  # 16 bits: a radix sort
        scores, hits = scores[by_class], hits[by_class]
        precision_C, probability_C = np.full((2, self.num_classes), np.nan)
        ends_C = np.cumsum(rated_C)
        for c in np.flatnonzero(rated_C):
            own = slice(ends_C[c] - rated_C[c], ends_C[c])
            probability_C[c] = torch.from_numpy(scores[own]).double().sigmoid().mean()
            if positives_C[c]:
                precision_C[c] = average_precision(hits[own][descending(scores[own])], int(positives_C[c]))
        return ClassScores(
            rated_C=rated_C,
            positives_C=positives_C,
            average_precision_C=precision_C,
            mean_probability_C=probability_C,
        )
