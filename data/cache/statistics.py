"""Statistics of a split: mean and variance of every feature column, and how many videos carry each label.

    Totals.of(a shard) -> merge, merge ... -> Totals of the split -> statistics()

The totals of a shard are computed where it is decoded, and stored with the cache. Those of features run in float64, and
two of them merge as if they had been one (Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm
for computing sample variances"), so the chunk size and the order of the shards change at most the last bits of a
float64. Those of frames are sums of bytes, which are exact in any order.

Shapes   N videos   F frames of all of them   D features side by side   C classes
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from data import access
from data.atomic import replacing
from data.schema import DEQUANTISE_SCALE, DEQUANTISE_SHIFT, Schema

_FRAMES_AT_ONCE = 256  # 256 x 255^2 < 2^24
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
    """Computes the statistics of all columns, read once from front to back, a few megabytes at a time."""
    access.read_in_order(columns.features_ND)
    totals = Totals.of(
        columns.features_ND,
        num_videos=len(columns.label_offsets) - 1,
        label_indices=columns.label_indices,
        rated_indices=columns.rated_indices,
        num_classes=num_classes,
    )
    return totals.statistics()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Mean and spread of the features of N videos, in float64."""

    num_rows: int  # N
    mean_D: NDArray[np.float64]
    squares_D: NDArray[np.float64]  # sum over videos of (x - mean)^2

    @classmethod
    def empty(cls, width: int) -> Self:
        """Returns the moments of no videos; merging with them changes nothing."""
        return cls(num_rows=0, mean_D=np.zeros(width), squares_D=np.zeros(width))

    @classmethod
    def of(cls, features_ND: NDArray[Any]) -> Self:
        """Computes the moments of some videos, each chunk of them in two passes.

        The variance of a constant column is exactly 0: the 29 extra bits of a float64 hold the sum of half a billion
        equal float32 values without rounding.
        """
        total = cls.empty(features_ND.shape[1])
        for first in range(0, len(features_ND), _ROWS_AT_ONCE):
            deviation_ND = features_ND[first : first + _ROWS_AT_ONCE].astype(np.float64)
            mean_D = deviation_ND.mean(axis=0)
            deviation_ND -= mean_D
            squares_D = np.einsum("nd,nd->d", deviation_ND, deviation_ND)
            total = total.merge(cls(num_rows=len(deviation_ND), mean_D=mean_D, squares_D=squares_D))
        return total

    def merge(self, other: Self) -> Self:
        """Returns the moments of both sets of videos together.

        With d = mean_b - mean_a:  mean = mean_a + d n_b / n  and  squares = squares_a + squares_b + d^2 n_a n_b / n.
        """
        num_rows = self.num_rows + other.num_rows
        if num_rows == 0:
            return self
        difference_D = other.mean_D - self.mean_D
        share = other.num_rows / num_rows
        return type(self)(
            num_rows=num_rows,
            mean_D=self.mean_D + difference_D * share,
            squares_D=self.squares_D + other.squares_D + difference_D**2 * (self.num_rows * share),
        )

    def mean_and_variance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns mean_D and variance_D of the population; without videos both are 0."""
        return self.mean_D, self.squares_D / max(self.num_rows, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteMoments:
    """Sums of the bytes of F frames and of their squares: whole numbers, below 2^63 up to 1e14 frames."""

    num_rows: int  # F
    sum_D: NDArray[np.int64]
    squares_D: NDArray[np.int64]  # sum over frames of x^2

    @classmethod
    def of(cls, frames_FD: NDArray[np.uint8]) -> Self:
        """Sums up frames; each block is summed in float32, whose sums of whole numbers below 2^24 are exact."""
        sum_D, squares_D = np.zeros((2, frames_FD.shape[1]), np.int64)
        for first in range(0, len(frames_FD), _FRAMES_AT_ONCE):
            block_FD = frames_FD[first : first + _FRAMES_AT_ONCE].astype(np.float32)
            sum_D += block_FD.sum(axis=0).astype(np.int64)
            squares_D += np.einsum("fd,fd->d", block_FD, block_FD).astype(np.int64)
        return cls(num_rows=len(frames_FD), sum_D=sum_D, squares_D=squares_D)

    def merge(self, other: Self) -> Self:
        """Returns the sums over both sets of frames together."""
        return type(self)(
            num_rows=self.num_rows + other.num_rows,
            sum_D=self.sum_D + other.sum_D,
            squares_D=self.squares_D + other.squares_D,
        )

    def mean_and_variance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns mean_D and variance_D of the dequantised frames; without frames both are 0."""
        if self.num_rows == 0:
            return np.zeros(len(self.sum_D)), np.zeros(len(self.sum_D))
        # The difference of two large products loses digits in a float64, so Python's integers compute it.
        pairs = zip(self.sum_D.tolist(), self.squares_D.tolist(), strict=True)
        spread_D = np.array([(self.num_rows * squares - total**2) / self.num_rows**2 for total, squares in pairs])
        return self.sum_D / self.num_rows * DEQUANTISE_SCALE + DEQUANTISE_SHIFT, spread_D * DEQUANTISE_SCALE**2


def moments_of(features_ND: NDArray[Any]) -> Moments | ByteMoments:
    """Sums up features: uint8 frames [F, D], or floats [N, D]."""
    return ByteMoments.of(features_ND) if features_ND.dtype == np.uint8 else Moments.of(features_ND)


def as_row(moments: Moments | ByteMoments) -> NDArray[Any]:
    """Returns moments as one row of numbers, float64 [1 + 2 D], or int64 for frames; `from_row` reads it."""
    sums_D = moments.mean_D if isinstance(moments, Moments) else moments.sum_D
    return np.concatenate([np.array([moments.num_rows], sums_D.dtype), sums_D, moments.squares_D])


def from_row(row: NDArray[Any]) -> Moments | ByteMoments:
    """Returns the moments that `as_row` wrote."""
    num_rows, (sums_D, squares_D) = int(row[0]), np.split(row[1:], 2)
    if row.dtype == np.int64:
        return ByteMoments(num_rows=num_rows, sum_D=sums_D, squares_D=squares_D)
    return Moments(num_rows=num_rows, mean_D=sums_D, squares_D=squares_D)


def merged(before: Moments | ByteMoments | None, more: Moments | ByteMoments) -> Moments | ByteMoments:
    """Returns the moments of both; None: there are none before."""
    return more if before is None else before.merge(more)  # type: ignore[arg-type]  # both are of the same level


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Totals:
    """The mergeable form of `Statistics`: sums and counts, divided once at the end."""

    num_videos: int
    moments: Moments | ByteMoments
    label_counts_C: NDArray[np.int64]
    rated_counts_C: NDArray[np.int64] | None  # None: every class is rated in every video

    @classmethod
    def of(
        cls,
        features_ND: NDArray[Any],
        *,
        num_videos: int,
        label_indices: NDArray[np.int32],
        rated_indices: NDArray[np.int32] | None,
        num_classes: int,
    ) -> Self:
        """Sums up some videos; their features are uint8 frames [F, D], or floats [N, D]."""
        return cls(
            num_videos=num_videos,
            moments=moments_of(features_ND),
            label_counts_C=counts(label_indices, num_classes),
            rated_counts_C=None if rated_indices is None else counts(rated_indices, num_classes),
        )

    @classmethod
    def empty(cls, schema: Schema, rated: bool) -> Self:
        """Returns the totals of no videos; merging with them changes nothing."""
        return cls(
            num_videos=0,
            moments=moments_of(np.empty((0, schema.width), np.float32 if schema.level == "video" else np.uint8)),
            label_counts_C=np.zeros(schema.num_classes, np.int64),
            rated_counts_C=np.zeros(schema.num_classes, np.int64) if rated else None,
        )

    def with_moments(self, moments: Moments | ByteMoments | None) -> Self:
        """Returns these totals with the features of the same videos that came before, if some did."""
        return replace(self, moments=merged(moments, self.moments))

    def merge(self, other: Self) -> Self:
        """Returns the totals of both sets of videos together."""
        rated, others = self.rated_counts_C, other.rated_counts_C
        return type(self)(
            num_videos=self.num_videos + other.num_videos,
            moments=merged(self.moments, other.moments),
            label_counts_C=self.label_counts_C + other.label_counts_C,
            rated_counts_C=None if rated is None or others is None else rated + others,
        )

    def statistics(self) -> Statistics:
        """Returns mean, variance and counts."""
        mean_D, variance_D = self.moments.mean_and_variance()
        return Statistics(
            num_videos=self.num_videos,
            mean_D=mean_D.astype(np.float32),
            variance_D=variance_D.astype(np.float32),
            label_counts_C=self.label_counts_C,
            rated_counts_C=self.rated_counts_C,
        )


def kept_statistics(path: Path, rated: bool) -> Statistics | None:
    """Reads what `keep_totals`, or an earlier version, wrote; None where there is no such file, or a damaged one.

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


def kept_totals(path: Path, rated: bool) -> Totals | None:
    """Reads what `keep_totals` wrote; None for no such file, a damaged or an older one."""
    statistics = kept_statistics(path, rated)
    if statistics is None:
        return None
    try:
        with np.load(path) as kept:
            of_frames = "moments_sum_D" in kept
            values = {name: kept[f"moments_{name}"] for name in ("sum_D" if of_frames else "mean_D", "squares_D")}
            num_rows = int(kept["moments_num_rows"])
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    return Totals(
        num_videos=statistics.num_videos,
        moments=ByteMoments(num_rows=num_rows, **values) if of_frames else Moments(num_rows=num_rows, **values),
        label_counts_C=statistics.label_counts_C,
        rated_counts_C=statistics.rated_counts_C,
    )


def keep_totals(path: Path, totals: Totals) -> None:
    """Writes totals and their statistics to a file.

    Raises:
        OSError: the disk is full or read-only.
    """
    values = asdict(totals.statistics()) | {f"moments_{name}": value for name, value in asdict(totals.moments).items()}
    with replacing(path) as temporary:
        np.savez(temporary, **{name: value for name, value in values.items() if value is not None})


def counts(indices: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Returns how often each class occurs, int64 [C]."""
    return np.bincount(indices, minlength=num_classes).astype(np.int64)
