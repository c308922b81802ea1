"""Predictions that were stored in Kaggle's format of 2017 and 2018: read, scored, and compared with a model's own.

    VideoId,LabelConfidencePairs
    u93s,12 0.987654 3 0.5 77 0.0312345

Shapes   N videos of the shards   B videos in the batch   C classes
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.errors import ConfigError
from tuner.inference.streaming import open_text, refused
from tuner.predict import HEADER

if TYPE_CHECKING:
    from torch import Tensor

    from data.batches import Batches
    from data.cache.store import Cache
    from tuner.export.loader import ExportedModel

CHUNK = 1024  # videos that are scored at a time
TOP_K = 20  # predictions of a video that enter GAP: padding must not let others in
# Behind every prediction, and before the classes that are not listed.
NO_PREDICTION = -1e30
NAMED = 5  # videos that are named of those that differ, are missing or unknown


class Truth(Protocol):
    """The videos of shards with their labels; `data.cache.Cache` fits."""

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """[N]."""

    @property
    def label_offsets(self) -> NDArray[np.int64]:
        """[N + 1]: the labels of video n are label_indices[offsets[n] : offsets[n + 1]]."""

    @property
    def label_indices(self) -> NDArray[np.int32]:
        """Classes."""

    @property
    def rated_offsets(self) -> NDArray[np.int64] | None:
        """Likewise of the classes that are rated; None: all are."""

    @property
    def rated_indices(self) -> NDArray[np.int32] | None:
        """Classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels alone, read from shards of which nothing else is known."""

    ids: NDArray[np.bytes_]
    label_offsets: NDArray[np.int64]
    label_indices: NDArray[np.int32]
    rated_offsets: None = None
    rated_indices: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file of predictions."""

    path: Path
    rows: dict[bytes, int]  # by video id
    offsets: NDArray[np.int64]  # [rows + 1]: those of row r are classes[offsets[r] : offsets[r + 1]]
    classes: NDArray[np.int32]
    probabilities: NDArray[np.float64]

    def of(self, ids: Sequence[bytes]) -> Listed:
        """What is listed for these videos; nothing for those that are missing."""
        found = np.array([self.rows.get(id, -1) for id in ids], np.int64)
        counts = np.where(found < 0, 0, self.offsets[found + 1] - self.offsets[found])
        videos = np.repeat(np.arange(len(ids)), counts)
        begins = np.repeat(self.offsets[found] - (np.cumsum(counts) - counts), counts)
        places = begins + np.arange(len(videos))
        return Listed(videos, self.classes[places], self.probabilities[places])


class Listed(NamedTuple):
    """Pairs of several videos, one entry each."""

    videos: NDArray[np.int64]  # which of the videos that were asked for
    classes: NDArray[np.int32]
    probabilities: NDArray[np.float64]


def read(path: Path) -> Stored:
    """Read a file of predictions, plain or .gz.

    Raises:
        ConfigError: it cannot be read, or a line is not `id,class probability class probability ...`.
    """
    rows: dict[bytes, int] = {}
    offsets, classes, probabilities = array("q", [0]), array("i"), array("d")
    for line, fields in _lines(path, HEADER):
        id, pairs = fields[0].encode(errors="surrogateescape"), fields[1].split()
        listed = pairs[::2]
        try:
            numbers, shares = list(map(int, listed)), list(map(float, pairs[1::2]))
        except ValueError as error:
            raise ConfigError(f"{path}:{line}: must list a class and its probability by turns: {error}") from error
        if len(numbers) != len(shares):
            raise ConfigError(f"{path}:{line}: the last class, {listed[-1]}, has no probability: the line is cut short")
        if not all(0 <= share <= 1 for share in shares) or min(numbers, default=0) < 0:
            raise ConfigError(
                f"{path}:{line}: a class is 0 or more and a probability in [0, 1], but got {fields[1]!r:.80}"
            )
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"{path}:{line}: a class is listed twice for video {_shown(id)}")
        if id in rows:
            raise ConfigError(f"{path}:{line}: video {_shown(id)} comes a second time")
        rows[id] = len(rows)
        classes.extend(numbers)
        probabilities.extend(shares)
        offsets.append(len(classes))
    return Stored(
        path=path,
        rows=rows,
        offsets=np.array(offsets, np.int64),
        classes=np.array(classes, np.int32),
        probabilities=np.array(probabilities, np.float64),
    )


def _lines(path: Path, header: tuple[str, str]) -> Iterator[tuple[int, list[str]]]:
    """The lines behind the header, each of two fields, by number."""
    with refused(f"{path}: cannot be read as predictions"), open_text(path, "rt") as file:
        lines = csv.reader(file)
        first = next(lines, [])
        if tuple(first) != header:
            raise ConfigError(f"{path}: must begin with the line {','.join(header)}, but got {','.join(first)!r:.80}")
        for fields in lines:
            if len(fields) != 2:
                raise ConfigError(f"{path}:{lines.line_num}: must have 2 fields, but got {len(fields)}")
            yield lines.line_num, fields


def labels_of(shards: Sequence[str]) -> Labels:
    """Ids and labels of shards, whatever else they hold.

    Raises:
        ShardError: one is damaged, or has no ids or labels.
    """
    from data.tfrecord import read_examples

    ids: list[bytes] = []
    offsets, labels = array("q", [0]), array("i")
    for shard in shards:
        for example in read_examples(shard):
            ids.append(example.id)
            carried = np.unique(example.labels)
            if len(carried) and carried[0] < 0:
                raise example.error(f"holds the class {carried[0]}", "labels")
            labels.extend(carried.tolist())
            offsets.append(len(labels))
    return Labels(
        ids=np.array(ids, np.bytes_),
        label_offsets=np.array(offsets, np.int64),
        label_indices=np.array(labels, np.int32),
    )


def score(stored: Stored, truth: Truth) -> dict[str, float]:
    """The metrics of the file on the videos of `truth`: a missing video has no predictions, an unknown one no part.

    A class that is not listed is not predicted. Scored as 0 it would still be ranked, and be a hit by chance, where a
    video lists fewer classes than enter GAP; so every row is filled up with classes that nothing carries.
    """
    import torch

    from models.metrics.metrics import Accumulator

    num_labels_N = np.diff(truth.label_offsets)
    rated = () if truth.rated_indices is None else truth.rated_indices
    num_classes = 1 + int(max(np.max(classes, initial=0) for classes in (stored.classes, truth.label_indices, rated)))
    padding = max(TOP_K, int(num_labels_N.max(initial=0)))
    accumulator = Accumulator(num_classes + padding, TOP_K, loss=False)
    for first in range(0, len(truth.ids), CHUNK):
        ids = truth.ids[first : first + CHUNK].tolist()
        scores_BC = np.full((len(ids), num_classes + padding), -np.inf, np.float32)
        scores_BC[:, num_classes:] = NO_PREDICTION
        listed = _rated(stored.of(ids), truth, first, len(ids), num_classes)
        shares = listed.probabilities.clip(1e-300, 1 - 1e-16)
        scores_BC[listed.videos, listed.classes] = np.log(shares) - np.log1p(-shares)
        labels = _lists(truth.label_offsets, truth.label_indices, first, len(ids))
        accumulator.update(torch.from_numpy(scores_BC), *labels)
    return accumulator.compute()


def _rated(listed: Listed, truth: Truth, first: int, num_videos: int, num_classes: int) -> Listed:
    """What is listed of the videos from `first` on, but for classes that nobody rated."""
    if truth.rated_offsets is None or truth.rated_indices is None:
        return listed
    from models.ragged import cells_of

    rated = _lists(truth.rated_offsets, truth.rated_indices, first, num_videos)
    kept = cells_of(*rated, num_classes).numpy()[listed.videos, listed.classes]
    return Listed(listed.videos[kept], listed.classes[kept], listed.probabilities[kept])


def _lists(
    offsets: NDArray[np.int64], indices: NDArray[np.int32], first: int, num_videos: int
) -> tuple[Tensor, Tensor]:
    """The lists of classes of the videos from `first` on, as models.ragged has them."""
    import torch

    offsets = np.asarray(offsets[first : first + num_videos + 1])
    listed = np.asarray(indices[offsets[0] : offsets[-1]], np.int64)
    return torch.from_numpy(offsets - offsets[0]), torch.from_numpy(listed)


# ---------------------------------------------------------------------------------------------------------- comparison


class Difference(NamedTuple):
    """The class of a video on which file and model differ most."""

    size: float
    video: bytes
    label: int
    stored: float | None  # None: not listed, so by the file at most `at_most`
    at_most: float
    own: float  # the model's

    def __str__(self) -> str:
        """For people."""
        told = f"{self.stored:.6g}" if self.stored is not None else f"not listed, so at most {self.at_most:.6g}"
        return f"video {_shown(self.video)}, class {self.label}: {told}; by the model {self.own:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far a file is from what a model says."""

    num_videos: int  # compared
    differing: int  # of these, by more than the tolerance
    largest: list[Difference]  # of the videos that differ most, largest first
    missing: list[bytes]  # videos of the shards that the file lacks
    unknown: list[bytes]  # videos of the file that the shards lack

    @property
    def agrees(self) -> bool:
        """Whether nothing differs, is missing or unknown."""
        return not (self.differing or self.missing or self.unknown)


def compare(stored: Stored, exported: ExportedModel, cache: Cache, batches: Batches, tolerance: float) -> Comparison:
    """Compare every video's listed probabilities, and what is not listed, with the model's.

    A class that is not listed must not be more probable than the least that is.

    Raises:
        ConfigError: the file names a class that the model lacks, or none of the videos.
    """
    if stored.classes.max(initial=0) >= exported.schema.num_classes:
        raise ConfigError(
            f"{stored.path}: names class {stored.classes.max()}, but the model has only {exported.schema.num_classes}"
        )
    ids = cache.ids.tolist()
    known = set(ids)
    missing = [id for id in ids if id not in stored.rows]
    if len(missing) == len(ids):
        raise ConfigError(f"{stored.path}: has none of the {len(ids):,} videos of the shards, as {_shown(ids[0])}")
    worst: list[Difference] = []
    differing = 0
    for batch in batches.epoch(0):
        own_BC = exported.logits(batch).double().sigmoid().cpu().numpy()
        found = _differences(stored, [ids[row] for row in batch.rows.tolist()], own_BC)
        differing += sum(difference.size > tolerance for difference in found)
        worst = sorted([*worst, *found], key=lambda difference: -difference.size)[:NAMED]
    return Comparison(
        num_videos=len(ids) - len(missing),
        differing=differing,
        largest=worst,
        missing=missing,
        unknown=[id for id in stored.rows if id not in known],
    )


def _differences(stored: Stored, ids: Sequence[bytes], own_BC: NDArray[np.float64]) -> list[Difference]:
    """The largest difference of every video that the file has."""
    num_videos, num_classes = own_BC.shape
    listed = stored.of(ids)
    lowest_B = np.ones(num_videos)
    np.minimum.at(lowest_B, listed.videos, listed.probabilities)
    lowest_B[np.bincount(listed.videos, minlength=num_videos) == 0] = 0  # nothing listed: nothing is probable
    stored_BC = np.full((num_videos, num_classes), np.nan)
    stored_BC[listed.videos, listed.classes] = listed.probabilities
    differences_BC = np.where(np.isnan(stored_BC), (own_BC - lowest_B[:, None]).clip(min=0), np.abs(own_BC - stored_BC))
    found = []
    for video, label in enumerate(differences_BC.argmax(axis=1).tolist()):
        if ids[video] in stored.rows:
            share = stored_BC[video, label]
            told = None if np.isnan(share) else float(share)
            size, own = float(differences_BC[video, label]), float(own_BC[video, label])
            found.append(Difference(size, ids[video], label, told, float(lowest_B[video]), own))
    return found


def describe(path: Path, comparison: Comparison, tolerance: float) -> list[str]:
    """For people: the finding first."""
    compared = f"{comparison.num_videos:,} videos compared"
    largest = comparison.largest[0].size
    if comparison.agrees:
        return [f"{path} is what the model says: {compared}, largest difference of a probability {largest:.2g}"]
    lines = [
        f"{path} is not what the model says: {compared}, {comparison.differing:,} differ by more than {tolerance:g}, "
        f"{len(comparison.missing):,} missing, {len(comparison.unknown):,} unknown"
    ]
    lines += [f"  {difference}" for difference in comparison.largest if difference.size > tolerance]
    for what, ids in (("missing from the file", comparison.missing), ("not in the shards", comparison.unknown)):
        if ids:
            more = ", ..." if len(ids) > NAMED else ""
            lines.append(f"  {what}: {', '.join(map(_shown, ids[:NAMED]))}{more}")
    return lines


def _shown(id: bytes) -> str:
    return id.decode(errors="backslashreplace")
