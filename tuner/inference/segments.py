"""The best segments of every class, in Kaggle's format of 2019: ranked as they come, written, and read back.

    Class,Segments
    3,u93s:15 2vab:0 u93s:20

A segment is five seconds of a video, named by its id and the second where they begin. A class lists its best segments,
best first. Memory is bounded however many come: 8 bytes for each of a class's best, with room for a quarter more, so
1 GB for 1,000 classes of 100,000; beside these, 8 bytes a segment and the videos' ids.

Shapes   S segments of a batch   C classes of the model   K classes that are listed
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from data.schema import RATINGS
from tuner.errors import ConfigError
from tuner.inference.streaming import open_text, refused, sortable

if TYPE_CHECKING:
    from torch import Tensor

HEADER = ("Class", "Segments")
INDEX = "Index"  # the column of a list of classes
MOST = 100_000  # segments of a class, as Kaggle took
SPARE = 1024  # room for segments beside the best, at least


class Segment(NamedTuple):
    """Five seconds of a video."""

    video: bytes
    start: int  # in seconds

    @classmethod
    def of(cls, name: bytes) -> Segment:
        """The segment of that name: `u93s:15`.

        Raises:
            ValueError: it is no such name.
        """
        video, _, start = name.rpartition(b":")
        if not video or not start.isdigit():
            raise ValueError(f"a segment is video:start, as in u93s:15, but got {name.decode(errors='replace')!r:.80}")
        return cls(video, int(start))

    def __str__(self) -> str:
        """As in the csv: text, not b'...'."""
        return f"{self.video.decode(errors='surrogateescape')}:{self.start}"


class Ranking:
    """The best segments of each class among all that were added; of equal ones, those that were added first."""

    def __init__(self, classes: Sequence[int], most: int = MOST) -> None:
        """Starts empty.

        Args:
            classes: those to list, in the order of the file.
            most: segments kept of each class.
        """
        self._classes, self._most = list(classes), most
        # One integer for both: a score's order, upside down, above the segment's number. The smallest are the best.
        # What is not filled takes no memory yet.
        self._keys_KN = np.empty((len(classes), most + max(most // 4, SPARE)), np.int64)
        self._held = 0
        self._videos: list[bytes] = []
        self._video_of = array("i")  # of each segment: the number of its video
        self._starts = array("i")

    def add(self, segments: Sequence[Segment], logits_SC: Tensor) -> None:
        """Adds segments; logits or probabilities, which rank alike.

        Args:
            segments: those of one video behind each other, or its id is kept twice.
            logits_SC: [S, C] for all classes of the model, on any device.
        """
        import torch

        ordered_SK = sortable(logits_SC[:, self._classes].cpu())
        numbers_S = torch.arange(len(self._starts), len(self._starts) + len(segments))
        keys_SK = (~ordered_SK << 32) + numbers_S[:, None]
        for segment in segments:
            if not self._videos or self._videos[-1] != segment.video:
                self._videos.append(segment.video)
            self._video_of.append(len(self._videos) - 1)
            self._starts.append(segment.start)
        room = self._keys_KN.shape[1] - self._most
        for first in range(0, len(segments), room):
            self._keep(keys_SK[first : first + room].numpy().T)

    def _keep(self, keys_KS: NDArray[np.int64]) -> None:
        if self._held + keys_KS.shape[1] > self._keys_KN.shape[1]:
            self._keys_KN[:, : self._held].partition(self._most - 1, axis=1)  # in place: the best come first
            self._held = self._most
        self._keys_KN[:, self._held : self._held + keys_KS.shape[1]] = keys_KS
        self._held += keys_KS.shape[1]

    def rows(self) -> Iterator[tuple[int, list[Segment]]]:
        """Every class with its segments, best first."""
        for label, keys_N in zip(self._classes, self._keys_KN, strict=True):
            numbers = (np.sort(keys_N[: self._held])[: self._most] & 0xFFFF_FFFF).tolist()
            yield label, [Segment(self._videos[self._video_of[n]], self._starts[n]) for n in numbers]


def write(path: Path, ranking: Ranking) -> None:
    """Write the csv, plain or .gz."""
    with open_text(path, "wt") as file:
        file.write(",".join(HEADER) + "\n")
        for label, segments in ranking.rows():
            file.write(f"{label},{' '.join(map(str, segments))}\n")


def read(path: Path) -> dict[int, list[Segment]]:
    """The segments of every class of a csv, best first.

    Raises:
        ConfigError: it cannot be read, or a line is not `class,video:start video:start ...`.
    """
    found: dict[int, list[Segment]] = {}
    with _reading(path) as file:
        header = file.readline().strip()
        if header != ",".join(HEADER):
            raise ConfigError(f"{path}: must begin with the line {','.join(HEADER)}, but got {header!r:.80}")
        for number, line in enumerate(file, start=2):
            label, comma, listed = line.strip().partition(",")
            if not comma or not label.isdecimal() or int(label) in found:
                again = " a second time" if label.isdecimal() and int(label) in found else ""
                raise ConfigError(f"{path}:{number}: must begin with a class and a comma, but got {label!r:.80}{again}")
            found[int(label)] = [_segment(word, path, number) for word in listed.split()]
    return found


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    # Not by the csv module, which takes no field this long; a line ends with a newline and nothing else.
    with refused(f"{path}: cannot be read as ranked segments"), open_text(path, "rt", newline="\n") as file:
        yield file


def _segment(word: str, path: Path, line: int) -> Segment:
    try:
        return Segment.of(word.encode(errors="surrogateescape"))
    except ValueError as error:
        raise ConfigError(f"{path}:{line}: {error}") from error


def is_segments(path: Path) -> bool:
    """Whether a file that can be read begins as ranked segments do."""
    try:
        with _reading(path) as file:
            return file.readline().strip() == ",".join(HEADER)
    except ConfigError:
        return False  # who reads it will say why


def ratings_of(shards: Sequence[str]) -> dict[int, dict[Hashable, bool]]:
    """By class, which segments were rated, and whether they have it: a score of at least a half.

    Raises:
        ShardError: a shard is damaged, or its ratings are missing or not equally many starts, classes and scores.
    """
    from data.tfrecord import read_examples

    ratings: dict[int, dict[Hashable, bool]] = {}  # by segments, which metrics take for names
    for shard in shards:
        for example in read_examples(shard):
            for key in RATINGS:
                if key not in example.features:
                    raise example.error("is missing: the record has no rated segments", key)
            starts, classes, scores = (example.features[key] for key in RATINGS)
            if not len(starts) == len(classes) == len(scores):
                raise example.error(
                    f"has {len(starts)} values, but others {len(classes)} and {len(scores)}", RATINGS[0]
                )
            for start, label, score in zip(starts, classes, scores, strict=True):
                ratings.setdefault(int(label), {})[Segment(example.id, int(start))] = float(score) >= 0.5
    return ratings


def read_classes(path: str, num_classes: int) -> list[int]:
    """The classes to list: the column Index of a csv, such as segment_label_ids.csv.

    Raises:
        ConfigError: it is a URL or cannot be read, or a line is no class of the model, or one that was there already.
    """
    if "://" in path:
        raise ConfigError(f"--classes {path}: must be a file of this machine, no URL: fetch it first")
    classes: dict[int, None] = {}
    with refused(f"--classes {path}: cannot be read"), open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if INDEX not in (rows.fieldnames or ()):
            got = ", ".join(rows.fieldnames or ["none"])
            raise ConfigError(f"--classes {path}: must have a column {INDEX}, but got {got}")
        for row in rows:
            index = row[INDEX] or ""
            if not (index.isdecimal() and int(index) < num_classes) or int(index) in classes:
                rule = f"must name each class once, all in [0, {num_classes})"
                raise ConfigError(f"--classes {path}:{rows.line_num}: {rule}, but got {index!r}")
            classes[int(index)] = None
    if not classes:
        raise ConfigError(f"--classes {path}: names no class")
    return list(classes)
