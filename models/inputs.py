"""What the data fixes about a model: the sizes of its input and output, and the statistics of the training videos.

Shapes   D features, all names side by side   C classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from data.schema import MAX_FRAMES, Level, Schema
from models.tensors import as_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Widths of the features, number of classes and level of the records."""

    features: Mapping[str, int]  # width of each feature by name; a row of the input holds them in this order
    num_classes: int
    level: Level = "video"  # video: a model takes features_BD; frame, segment: frames_BTD and mask_BT
    max_frames: int = MAX_FRAMES  # the largest T

    def __post_init__(self) -> None:
        """Refuses data without features or classes.

        Raises:
            ValueError: says which, and the value.
        """
        if not self.features or any(width < 1 for width in self.features.values()):
            raise ValueError(
                f"features must name at least one feature, each of width >= 1, but got {dict(self.features)}"
            )
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but got {self.num_classes}")

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """The sizes of the records of a schema."""
        return cls(
            features=dict(schema.features),
            num_classes=schema.num_classes,
            level=schema.level,
            max_frames=schema.max_frames,
        )

    @property
    def width(self) -> int:
        """D: the width of a row of the input."""
        return sum(self.features.values())


class Statistics(Protocol):
    """What a model reads of its training videos, as tensors or as arrays."""

    @property
    def num_videos(self) -> int:
        """N: the number of training videos."""

    @property
    def mean_D(self) -> Any:
        """Mean of every feature."""

    @property
    def variance_D(self) -> Any:
        """Population variance of every feature."""

    @property
    def label_counts_C(self) -> Any:
        """Number of videos with each class as a label."""

    @property
    def rated_counts_C(self) -> Any:
        """Number of videos for which each class is rated; None: every class is rated for every video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """Statistics held as tensors."""

    num_videos: int
    mean_D: Tensor
    variance_D: Tensor
    label_counts_C: Tensor
    rated_counts_C: Tensor | None = None

    @classmethod
    def empty(cls, sizes: Sizes) -> Self:
        """The statistics of no videos, for a model whose weights are not used or are loaded later."""
        return cls(
            num_videos=0,
            mean_D=torch.zeros(sizes.width),
            variance_D=torch.zeros(sizes.width),
            label_counts_C=torch.zeros(sizes.num_classes, dtype=torch.int64),
        )


def rated_counts(statistics: Statistics) -> Tensor:
    """N_c: for each class the number of videos for which it is rated, of which its labels are a share.

    A class that is rated for no video counts as rated for all of them. Its output then starts below those of the
    classes that are learned, so it does not enter the lists of a video's most probable classes.

    Returns:
        [C] float64.
    """
    all_C = torch.full_like(as_tensor(statistics.label_counts_C).double(), statistics.num_videos)
    if statistics.rated_counts_C is None:
        return all_C
    rated_C = as_tensor(statistics.rated_counts_C).double()
    return torch.where(rated_C > 0, rated_C, all_C)
