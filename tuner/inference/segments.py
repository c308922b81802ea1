"""Rank the segments of videos for every class, and write and read the ranking in Kaggle's format of 2019.

    Class,Segments
    3,u93s:15 2vab:0 u93s:20

A segment is five seconds of a video. Its name is the video's id and the second where it begins. Each class lists its
best segments, best first. The memory for the ranking does not depend on the number of videos: 8 bytes for each segment
that a class keeps, and a quarter more, so 1 GB for 1,000 classes with 100,000 segments each. In addition, every segment
takes 8 bytes, and every video its id.

Shapes   S segments of a batch   C classes of the model   K classes that are listed
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from data.ranges import is_whole
from data.schema import RATINGS, id_keys
from tuner.errors import ConfigError, ModelFolderError, TunerError
from tuner.inference.ranking import sort_keys
from tuner.inference.streaming import BATCH_SIZE, batches_of, decoded_blocks
from tuner.inference.text_files import open_text, reading

if TYPE_CHECKING:  # `--help` needs no torch
    import torch
    from torch import Tensor

    from tuner.export.loader import ExportedModel

HEADER = ("Class", "Segments")
PER_CLASS = 100_000  # segments that a class keeps, as in Kaggle's competition
MIN_SPARE = 1024  # smallest number of segments that a class holds besides those that it keeps


class Segment(NamedTuple):
    """Five seconds of a video."""

    video: bytes
    start: int  # in seconds

    @classmethod
    def of(cls, name: bytes) -> Segment:
        """Parse the name of a segment, such as `u93s:15`.

        Raises:
            ValueError: `name` is not the name of a segment.
        """
        video, _, start = name.rpartition(b":")
        if not video or not start.isdigit():
            raise ValueError(
                f"a segment must be video:start, as in u93s:15, but got {name.decode(errors='replace')!r:.80}"
            )
        return cls(video, int(start))

    def __str__(self) -> str:
        """The name of the segment, as text."""
        return f"{self.video.decode(errors='surrogateescape')}:{self.start}"


class Ranking:
    """The best segments of each class among all that were added; of equal ones, those that were added first."""

    def __init__(self, classes: Sequence[int], per_class: int = PER_CLASS) -> None:
        """Create a ranking without segments.

        Args:
            classes: the classes to rank segments for, in the order of the file.
            per_class: number of segments that each class keeps.
        """
        self._classes, self._per_class = list(classes), per_class
        # One integer holds both: the reversed order of the score, and below it the number of the segment. The smallest
        # keys are the best. Pages of the array that are not used yet take no memory.
        self._keys_KN = np.empty((len(classes), per_class + max(per_class // 4, MIN_SPARE)), np.int64)
        self._num_held = 0
        self._videos: list[bytes] = []
        self._video_of = array("i")  # of each segment: the number of its video
        self._starts = array("i")

    def add(self, segments: Sequence[Segment], logits_SC: Tensor) -> None:
        """Add segments with their scores.

        Args:
            segments: segments of one video should follow each other; otherwise the id of the video is stored twice.
            logits_SC: scores [S, C] for all classes of the model, on any device; probabilities give the same ranking.
        """
        import torch

        ordered_SK = sort_keys(logits_SC[:, self._classes].cpu())
        numbers_S = torch.arange(len(self._starts), len(self._starts) + len(segments))
        keys_SK = (~ordered_SK << 32) + numbers_S[:, None]
        for segment in segments:
            if not self._videos or self._videos[-1] != segment.video:
                self._videos.append(segment.video)
            self._video_of.append(len(self._videos) - 1)
            self._starts.append(segment.start)
        step = self._keys_KN.shape[1] - self._per_class
        for first in range(0, len(segments), step):
            self._keep(keys_SK[first : first + step].numpy().T)

    def _keep(self, keys_KS: NDArray[np.int64]) -> None:
        if self._num_held + keys_KS.shape[1] > self._keys_KN.shape[1]:
            self._keys_KN[:, : self._num_held].partition(self._per_class - 1, axis=1)  # in place: the best come first
            self._num_held = self._per_class
        self._keys_KN[:, self._num_held : self._num_held + keys_KS.shape[1]] = keys_KS
        self._num_held += keys_KS.shape[1]

    @property
    def videos(self) -> Sequence[bytes]:
        """The ids of the videos that were added."""
        return self._videos

    def repeated(self) -> list[bytes]:
        """The ids of videos of which a segment was added twice, as two records with one id give."""
        if not self._videos:
            return []
        ids_V, of_V = np.unique(np.array(self._videos, object), return_inverse=True)
        segments_S = (of_V[np.asarray(self._video_of)].astype(np.int64) << 32) + np.asarray(self._starts)
        found, counts = np.unique(segments_S, return_counts=True)
        repeated: list[bytes] = ids_V[np.unique(found[counts > 1] >> 32)].tolist()
        return repeated

    def rows(self) -> Iterator[tuple[int, list[Segment]]]:
        """Yield every class with its segments, best first."""
        for label, keys_N in zip(self._classes, self._keys_KN, strict=True):
            numbers = (np.sort(keys_N[: self._num_held])[: self._per_class] & 0xFFFF_FFFF).tolist()
            yield label, [Segment(self._videos[self._video_of[n]], self._starts[n]) for n in numbers]


def rank_segments(
    exported: ExportedModel,
    shards: Iterable[str],
    ranking: Ranking,
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> Iterator[int]:
    """Add all whole segments of every video to `ranking`: those that begin at 0, 5, 10, ... seconds.

    Args:
        exported: a model of frames, on `device`.
        shards: paths or URLs of the shards.
        ranking: gets the segments.
        device: where the segments are scored.
        batch_size: number of segments that are scored at once.

    Yields:
        The number of segments of each block of a shard.

    Raises:
        ModelFolderError: the model takes features of whole videos.
        ShardError: a shard is damaged or does not fit the model.
    """
    if exported.schema.level == "video":
        raise ModelFolderError(
            "--segments: the model takes features of whole videos, which have no segments: "
            "give a model that was trained with data.level frame or segment"
        )
    of_segments = replace(exported, schema=replace(exported.schema, level="segment"))
    for shard in decoded_blocks(shards, of_segments):
        for batch in batches_of(shard, of_segments, batch_size, device).epoch(0):
            names = shard.ids[batch.rows.cpu().numpy()].tolist()
            ranking.add([Segment.of(name) for name in names], exported.logits(batch))
        yield len(shard.ids)


def write(path: Path, ranking: Ranking) -> None:
    """Write a ranking to a csv, plain or .gz.

    Raises:
        TunerError: an id has a space, at which a reader of the file would cut it; or a segment was added twice.
    """
    if unsound := [id for id in ranking.videos if _has_space(id.decode(errors="surrogateescape"))]:
        raise TunerError(
            f"{path}: segments are separated by spaces, but {len(unsound)} ids hold some: {_shown(unsound)}"
        )
    if repeated := ranking.repeated():
        raise TunerError(
            f"{path}: {len(repeated)} videos were scored twice: two records have the id {_shown(repeated)}, and no "
            "reader could tell their segments apart"
        )
    with open_text(path, "wt") as file:
        file.write(",".join(HEADER) + "\n")
        for label, segments in ranking.rows():
            file.write(f"{label},{' '.join(map(str, segments))}\n")


def _has_space(id: str) -> bool:
    return not id or any(letter.isspace() for letter in id)


def _shown(ids: Sequence[bytes]) -> str:
    return ", ".join(repr(id.decode(errors="backslashreplace")) for id in ids[:3])


def read(path: Path) -> dict[int, list[Segment]]:
    """Read the ranking of a csv, plain or .gz.

    Returns:
        The segments of every class, best first.

    Raises:
        ConfigError: the file cannot be read, or a line is not `class,video:start video:start ...`.
    """
    found: dict[int, list[Segment]] = {}
    with _reading(path) as file:
        header = file.readline().strip()
        if header != ",".join(HEADER):
            raise ConfigError(f"{path}: must begin with the line {','.join(HEADER)}, but got {header!r:.80}")
        for number, line in enumerate(file, start=2):
            label, comma, listed = line.strip().partition(",")
            if not comma or not is_whole(label) or int(label) in found:
                again = " a second time" if is_whole(label) and int(label) in found else ""
                raise ConfigError(f"{path}:{number}: must begin with a class and a comma, but got {label!r:.80}{again}")
            found[int(label)] = [_segment(word, path, number) for word in listed.split()]
    return found


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    # Without the csv module, whose fields cannot be this long. Only a newline ends a line.
    with reading(f"{path}: cannot be read as ranked segments"), open_text(path, "rt", newline="\n") as file:
        yield file


def _segment(word: str, path: Path, line: int) -> Segment:
    try:
        return Segment.of(word.encode(errors="surrogateescape"))
    except ValueError as error:
        raise ConfigError(f"{path}:{line}: {error}") from error


def is_segments(path: Path) -> bool:
    """Whether a file has the header of ranked segments."""
    try:
        with _reading(path) as file:
            return file.readline().strip() == ",".join(HEADER)
    except ConfigError:
        return False  # the function that reads the file reports the error


def ratings_of(shards: Sequence[str], keys: Mapping[str, str] | None = None) -> dict[int, dict[Hashable, bool]]:
    """Read the ratings of the segments in shards.

    Args:
        shards: paths or URLs.
        keys: of the records, as `data.schema.Schema.keys`; None: the usual ones.

    Returns:
        By class and rated segment: whether the segment has the class, which is a score of at least 0.5.

    Raises:
        ShardError: a shard is damaged, or a record has no ratings, or its numbers of starts, classes and scores differ.
    """
    from data.tfrecord import read_examples

    keys = keys or {}
    rating_keys = [keys.get(name, name) for name in RATINGS]
    ratings: dict[int, dict[Hashable, bool]] = {}  # the metrics take any hashable name
    for shard in shards:
        for example in read_examples(shard):
            for key in rating_keys:
                if key not in example.features:
                    raise example.error("is missing: the record has no rated segments", key)
            starts, classes, scores = (example.features[key] for key in rating_keys)
            if not len(starts) == len(classes) == len(scores):
                raise example.error(
                    f"has {len(starts)} values, but others {len(classes)} and {len(scores)}", rating_keys[0]
                )
            video = example.id_under(id_keys(keys))
            for start, label, score in zip(starts, classes, scores, strict=True):
                ratings.setdefault(int(label), {})[Segment(video, int(start))] = float(score) >= 0.5
    return ratings


def score(ranked: Mapping[int, Sequence[Segment]], ratings: Mapping[int, Mapping[Hashable, bool]]) -> dict[str, float]:
    """Score a ranking by the ratings of `ratings_of`.

    Returns:
        map_at_k (MAP at 100,000), num_classes (with a positive rating), num_positives and num_rated.
    """
    from models.metrics.segments import map_at_k

    positives = [sum(rated.values()) for rated in ratings.values()]
    return {
        "map_at_k": map_at_k(ranked, ratings, PER_CLASS),
        "num_classes": float(sum(count > 0 for count in positives)),
        "num_positives": float(sum(positives)),
        "num_rated": float(sum(map(len, ratings.values()))),
    }
