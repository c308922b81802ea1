"""Statistics of a split: mean and variance of every feature column, and how many videos carry each label.

Shapes   N videos   F frames of all of them   D features side by side   C classes

Sums run in float64 and two summaries merge exactly as if they had been one (Chan, Golub and LeVeque, 1979,
"Updating formulae and a pairwise algorithm for computing sample variances"), so the chunk size and the order of the
shards change at most the last bits of a float64.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from data import access
from data.atomic import replacing
from data.schema import DEQUANTISE_SCALE, DEQUANTISE_SHIFT

_ROWS_AT_ONCE = 512  # 512 x 1152 float64 = 4.7 MB: the chunk stays in a core's cache over its three passes


class Columns(Protocol):
    """The columns of a cache that are read here; `data.cache.store.Cache` has them."""

    @property
    def features_ND(self) -> NDArray[Any]:
        """float16 or float32 [N, D]; the bytes of frames, uint8 [F, D]."""

    @property
    def frame_offsets(self) -> NDArray[np.int64] | None:
        """int64 [N + 1]: the frames of row n are features_ND[offsets[n] : offsets[n + 1]]; None: rows are features."""

    @property
    def label_offsets(self) -> NDArray[np.int64]:
        """int64 [N + 1]: the labels of row n are label_indices[label_offsets[n] : label_offsets[n + 1]]."""

    @property
    def label_indices(self) -> NDArray[np.int32]:
        """int32 [number of labels]: classes, in [0, C)."""

    @property
    def rated_indices(self) -> NDArray[np.int32] | None:
        """int32 [number of ratings]: the classes rated for each segment; None: every class is rated in every row."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What a model needs to know about its training split before the first step."""

    num_videos: int  # N
    mean_D: NDArray[np.float32]
    variance_D: NDArray[np.float32]  # of the population: sum of squared deviations / N
    label_counts_C: NDArray[np.int64]  # videos that carry the class
    rated_counts_C: NDArray[np.int64] | None = None  # videos in which the class is rated; None: all videos


def statistics_of(columns: Columns, num_classes: int) -> Statistics:
    """Computes the statistics of a whole cache, read once from front to back, a few megabytes at a time."""
    access.read_in_order(columns.features_ND)
    if columns.frame_offsets is None:
        return Moments.of_columns(columns, num_classes).statistics()
    mean_D, variance_D = frame_moments(columns.features_ND)
    return Statistics(
        num_videos=len(columns.frame_offsets) - 1,
        mean_D=mean_D.astype(np.float32),
        variance_D=variance_D.astype(np.float32),
        label_counts_C=_counts(columns.label_indices, num_classes),
        rated_counts_C=None if columns.rated_indices is None else _counts(columns.rated_indices, num_classes),
    )


def kept_statistics(path: Path, rated: bool) -> Statistics | None:
    """Reads what `keep_statistics` wrote; None where there is no such file, or a damaged one.

    Args:
        path: the file.
        rated: whether the cache has ratings, and so its statistics must have `rated_counts_C`.
    """
    try:
        with np.load(path) as kept:
            return Statistics(
                num_videos=int(kept["num_videos"]),
                mean_D=kept["mean_D"],
                variance_D=kept["variance_D"],
                label_counts_C=kept["label_counts_C"],
                rated_counts_C=kept["rated_counts_C"] if rated else None,
            )
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def keep_statistics(path: Path, statistics: Statistics) -> None:
    """Writes statistics to a file. On a full or read-only disk it does not, and the next caller computes them again."""
    values = {name: value for name, value in asdict(statistics).items() if value is not None}
    with suppress(OSError), replacing(path) as temporary:  # two processes that write at once write the same
        np.savez(temporary, **values)


def _counts(indices: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    return np.bincount(indices, minlength=num_classes).astype(np.int64)


def frame_moments(frames_FD: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes mean and population variance of every column of dequantised frames; without frames both are 0.

    The sums of the bytes and of their squares are whole numbers, exact in a float64 up to 1e11 frames.

    Returns:
        mean_D and variance_D.
    """
    num_frames, width = frames_FD.shape
    if num_frames == 0:
        return np.zeros(width), np.zeros(width)
    sum_D, squares_D = np.zeros(width), np.zeros(width)
    for first in range(0, num_frames, _ROWS_AT_ONCE):
        chunk_FD = frames_FD[first : first + _ROWS_AT_ONCE].astype(np.float64)
        sum_D += chunk_FD.sum(axis=0)
        squares_D += np.einsum("fd,fd->d", chunk_FD, chunk_FD)
    # The difference of two large products loses digits in a float64, so Python's integers compute it.
    pairs = [(int(total), int(squares)) for total, squares in zip(sum_D, squares_D, strict=True)]
    spread_D = np.array([(num_frames * squares - total * total) / num_frames**2 for total, squares in pairs])
    return sum_D / num_frames * DEQUANTISE_SCALE + DEQUANTISE_SHIFT, spread_D * DEQUANTISE_SCALE**2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """The mergeable form of `Statistics`: sums and counts in float64 and int64, divided once at the end."""

    num_videos: int
    mean_D: NDArray[np.float64]
    squares_D: NDArray[np.float64]  # sum over videos of (x - mean)^2
    label_counts_C: NDArray[np.int64]

    @classmethod
    def empty(cls, width: int, num_classes: int) -> Self:
        """Returns the moments of no videos; merging with them changes nothing."""
        return cls(
            num_videos=0,
            mean_D=np.zeros(width),
            squares_D=np.zeros(width),
            label_counts_C=np.zeros(num_classes, np.int64),
        )

    @classmethod
    def of(cls, features_ND: NDArray[Any], label_indices: NDArray[Any], num_classes: int) -> Self:
        """Computes the moments of one chunk in two passes, in float64.

        The variance of a constant column is exactly 0: the 29 extra bits of a float64 hold the sum of half a billion
        equal float32 values without rounding.
        """
        num_videos, width = features_ND.shape
        if num_videos == 0:
            return cls.empty(width, num_classes)
        deviation_ND = features_ND.astype(np.float64)
        mean_D = deviation_ND.mean(axis=0)
        deviation_ND -= mean_D
        return cls(
            num_videos=num_videos,
            mean_D=mean_D,
            squares_D=np.einsum("nd,nd->d", deviation_ND, deviation_ND),
            label_counts_C=_counts(label_indices, num_classes),
        )

    @classmethod
    def of_columns(cls, columns: Columns, num_classes: int) -> Self:
        """Computes the moments of a whole cache, read once from front to back, a few megabytes at a time."""
        total = cls.empty(columns.features_ND.shape[1], num_classes)
        for first in range(0, len(columns.features_ND), _ROWS_AT_ONCE):
            features_ND = columns.features_ND[first : first + _ROWS_AT_ONCE]
            begin, end = columns.label_offsets[first], columns.label_offsets[first + len(features_ND)]
            total = total.merge(cls.of(features_ND, columns.label_indices[begin:end], num_classes))
        return total

    def merge(self, other: Self) -> Self:
        """Returns the moments of both sets of videos together.

        With d = mean_b - mean_a:  mean = mean_a + d n_b / n  and  squares = squares_a + squares_b + d^2 n_a n_b / n.
        """
        num_videos = self.num_videos + other.num_videos
        if num_videos == 0:
            return self
        difference_D = other.mean_D - self.mean_D
        share = other.num_videos / num_videos
        return type(self)(
            num_videos=num_videos,
            mean_D=self.mean_D + difference_D * share,
            squares_D=self.squares_D + other.squares_D + difference_D**2 * (self.num_videos * share),
            label_counts_C=self.label_counts_C + other.label_counts_C,
        )

    def statistics(self) -> Statistics:
        """Returns mean and variance; without videos both are 0."""
        return Statistics(
            num_videos=self.num_videos,
            mean_D=self.mean_D.astype(np.float32),
            variance_D=(self.squares_D / max(self.num_videos, 1)).astype(np.float32),
            label_counts_C=self.label_counts_C,
        )
