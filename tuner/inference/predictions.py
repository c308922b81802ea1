"""Read and score a file of predictions in Kaggle's format of 2017 and 2018, as `tuner.inference.predict` writes it.

    VideoId,LabelConfidencePairs
    u93s,12 0.987654 3 0.5 77 0.0312345

Shapes   N videos of the shards   B videos in the batch   C classes
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data.ranges import COUNT, is_whole
from tuner.errors import ConfigError
from tuner.inference.text_files import open_text, reading

if TYPE_CHECKING:
    from torch import Tensor

HEADER = ("VideoId", "LabelConfidencePairs")
TOP_K = 20  # predictions of a video that count for GAP
CHUNK = 1024  # videos that are scored at once
# The logit of the padding: below all predictions, and above the classes that are not listed.
PADDING = -1e30


class Truth(Protocol):
    """The videos of shards with their labels, such as a `data.cache.store.Cache`."""

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """The ids of the videos [N]."""

    @property
    def label_offsets(self) -> NDArray[np.int64]:
        """Offsets [N + 1]: the labels of video n are label_indices[offsets[n] : offsets[n + 1]]."""

    @property
    def label_indices(self) -> NDArray[np.int32]:
        """The classes of all labels."""

    @property
    def rated_offsets(self) -> NDArray[np.int64] | None:
        """Offsets [N + 1] of the classes that are rated, in rated_indices; None: all classes are rated."""

    @property
    def rated_indices(self) -> NDArray[np.int32] | None:
        """The classes of all ratings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The ids and labels of shards whose other features are unknown."""

    ids: NDArray[np.bytes_]
    label_offsets: NDArray[np.int64]
    label_indices: NDArray[np.int32]
    rated_offsets: None = None
    rated_indices: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPredictions:
    """The content of a file of predictions."""

    path: Path
    rows: dict[bytes, int]  # by video id
    offsets: NDArray[np.int64]  # [rows + 1]: row r lists classes[offsets[r] : offsets[r + 1]]
    classes: NDArray[np.int32]
    probabilities: NDArray[np.float64]

    def of(self, ids: Sequence[bytes]) -> ListedPairs:
        """The pairs that the file lists for these videos; none for a video that it lacks."""
        found = np.array([self.rows.get(id, -1) for id in ids], np.int64)
        counts = np.where(found < 0, 0, self.offsets[found + 1] - self.offsets[found])
        videos = np.repeat(np.arange(len(ids)), counts)
        begins = np.repeat(self.offsets[found] - (np.cumsum(counts) - counts), counts)
        positions = begins + np.arange(len(videos))
        return ListedPairs(videos, self.classes[positions], self.probabilities[positions])


class ListedPairs(NamedTuple):
    """Pairs of class and probability of several videos, with one entry for each pair."""

    videos: NDArray[np.int64]  # index of the video in the requested ids
    classes: NDArray[np.int32]
    probabilities: NDArray[np.float64]


def read(path: Path) -> StoredPredictions:
    """Read a file of predictions, plain or .gz.

    Raises:
        ConfigError: the file cannot be read, or a line is not `id,class probability class probability ...`.
    """
    rows: dict[bytes, int] = {}
    offsets, classes, probabilities = array("q", [0]), array("i"), array("d")
    for line, fields in _lines(path, HEADER):
        id, pairs = fields[0].encode(errors="surrogateescape"), fields[1].split()
        listed = pairs[::2]
        try:
            numbers, values = list(map(_class, listed)), list(map(_probability, pairs[1::2]))
        except ValueError as error:
            raise ConfigError(f"{path}:{line}: must list pairs of a class and its probability: {error}") from error
        if len(numbers) != len(values):
            raise ConfigError(f"{path}:{line}: the last class, {listed[-1]}, has no probability: the line is cut short")
        if not all(0 <= value <= 1 for value in values) or max(numbers, default=0) >= COUNT.high:
            raise ConfigError(
                f"{path}:{line}: a class must be in [0, {COUNT.high:,}) and a probability in [0, 1], "
                f"but got {fields[1]!r:.80}"
            )
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"{path}:{line}: a class is listed twice for video {printable(id)}")
        if id in rows:
            raise ConfigError(f"{path}:{line}: video {printable(id)} is listed a second time")
        rows[id] = len(rows)
        classes.extend(numbers)
        probabilities.extend(values)
        offsets.append(len(classes))
    return StoredPredictions(
        path=path,
        rows=rows,
        offsets=np.array(offsets, np.int64),
        classes=np.array(classes, np.int32),
        probabilities=np.array(probabilities, np.float64),
    )


def _class(word: str) -> int:
    if not is_whole(word):
        raise ValueError(f"{word!r:.80} is no class")
    return int(word)


def _probability(word: str) -> float:
    if not word.isascii() or "_" in word:
        raise ValueError(f"{word!r:.80} is no number")
    return float(word)


def _lines(path: Path, header: tuple[str, str]) -> Iterator[tuple[int, list[str]]]:
    """The numbers and the two fields of the lines behind the header."""
    with reading(f"{path}: cannot be read as predictions"), open_text(path, "rt") as file:
        lines = csv.reader(file)
        first = next(lines, [])
        if tuple(first) != header:
            raise ConfigError(f"{path}: must begin with the line {','.join(header)}, but got {','.join(first)!r:.80}")
        for fields in lines:
            if len(fields) != 2:
                raise ConfigError(f"{path}:{lines.line_num}: must have 2 fields, but got {len(fields)}")
            yield lines.line_num, fields


def labels_of(shards: Sequence[str], keys: Mapping[str, str] | None = None) -> Labels:
    """Read the ids and labels of shards; other features are ignored.

    Args:
        shards: paths or URLs.
        keys: of the records, as `data.schema.Schema.keys`; None: the usual ones.

    Raises:
        ShardError: a shard is damaged, or a record has no id or no labels.
    """
    from data.schema import LABELS_KEY, id_keys
    from data.tfrecord import read_examples

    keys = keys or {}
    labels_key = keys.get(LABELS_KEY, LABELS_KEY)
    ids: list[bytes] = []
    offsets, labels = array("q", [0]), array("i")
    for shard in shards:
        for example in read_examples(shard):
            ids.append(example.id_under(id_keys(keys)))
            carried = np.unique(example.labels_under(labels_key))
            if len(carried) and carried[0] < 0:
                raise example.error(f"holds the class {carried[0]}", labels_key)
            labels.extend(carried.tolist())
            offsets.append(len(labels))
    return Labels(
        ids=np.array(ids, np.bytes_),
        label_offsets=np.array(offsets, np.int64),
        label_indices=np.array(labels, np.int32),
    )


def score(stored: StoredPredictions, truth: Truth) -> dict[str, float]:
    """The metrics of a file of predictions on the videos of `truth`.

    A video that the file lacks has no predictions; a video that `truth` lacks is ignored. A class that is not listed is
    not predicted. If it got the score 0, it would still be ranked where a video lists fewer than TOP_K classes, and
    could be a hit by chance. So every row is padded with classes that no video carries.
    """
    import torch

    from models.metrics import Accumulator

    num_labels_N = np.diff(truth.label_offsets)
    rated = () if truth.rated_indices is None else truth.rated_indices
    num_classes = 1 + int(max(np.max(classes, initial=0) for classes in (stored.classes, truth.label_indices, rated)))
    padding = max(TOP_K, int(num_labels_N.max(initial=0)))
    accumulator = Accumulator(num_classes + padding, TOP_K, loss=False)
    for first in range(0, len(truth.ids), CHUNK):
        ids = truth.ids[first : first + CHUNK].tolist()
        scores_BC = np.full((len(ids), num_classes + padding), -np.inf, np.float32)
        scores_BC[:, num_classes:] = PADDING
        listed = _rated(stored.of(ids), truth, first, len(ids), num_classes)
        probabilities = listed.probabilities.clip(1e-300, 1 - 1e-16)
        scores_BC[listed.videos, listed.classes] = np.log(probabilities) - np.log1p(-probabilities)
        labels = _lists(truth.label_offsets, truth.label_indices, first, len(ids))
        accumulator.update(torch.from_numpy(scores_BC), *labels)
    return accumulator.compute()


def _rated(listed: ListedPairs, truth: Truth, first: int, num_videos: int, num_classes: int) -> ListedPairs:
    """The listed pairs of the videos from `first` on whose classes are rated."""
    if truth.rated_offsets is None or truth.rated_indices is None:
        return listed
    from models.ragged import cells_of

    rated = _lists(truth.rated_offsets, truth.rated_indices, first, num_videos)
    kept = cells_of(*rated, num_classes).numpy()[listed.videos, listed.classes]
    return ListedPairs(listed.videos[kept], listed.classes[kept], listed.probabilities[kept])


def _lists(
    offsets: NDArray[np.int64], indices: NDArray[np.int32], first: int, num_videos: int
) -> tuple[Tensor, Tensor]:
    """The offsets and classes of the videos from `first` on, as models.ragged takes them."""
    import torch

    offsets = np.asarray(offsets[first : first + num_videos + 1])
    listed = np.asarray(indices[offsets[0] : offsets[-1]], np.int64)
    return torch.from_numpy(offsets - offsets[0]), torch.from_numpy(listed)


def printable(id: bytes) -> str:
    """A video id as text; bytes that are not UTF-8 are shown in hexadecimal digits."""
    return id.decode(errors="backslashreplace")
