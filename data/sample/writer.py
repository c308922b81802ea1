"""Writes sample shards in the format of the real ones: the default data, and that of the tests and benchmarks.

The files are written with the `tfrecord` package (protobuf messages, CRCs, file), which shares no code with our reader.
"""

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.atomic import replacing
from data.errors import DataError
from data.ranges import SEED, Range
from data.sample.world import FrameVideo, World
from data.schema import FEATURES, ID, LABELS_KEY, SEGMENT_LABELS, SEGMENT_SCORES, SEGMENT_START, Level, Schema

NUM_VIDEOS: Final[Mapping[str, int]] = {"train": 4000, "validate": 1000, "test": 1000}
NUM_FRAMES: Final = 30  # of the longest video
MARKER: Final = "sample.json"  # the file that says which shards were written with which settings

_ID_LETTERS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NUM_IDS: Final = len(_ID_LETTERS) ** 4
_SLOTS: Final = 16  # equal parts of the ids: each split has its own, so no video is in two splits
VIDEOS: Final = Range(0, _NUM_IDS // _SLOTS)  # of a split
SHARDS: Final = Range(1, 10_000)  # of a split: their names have four digits


def write_splits(
    directory: str | os.PathLike[str],
    *,
    num_videos: Mapping[str, int] = NUM_VIDEOS,
    num_shards: int = 4,
    num_classes: int = 64,
    seed: int = 1,
    features: Mapping[str, int] | None = None,
    level: Level = "video",
    num_frames: int = NUM_FRAMES,
    keys: Mapping[str, str] | None = None,
) -> dict[str, list[Path]]:
    """Writes the shards of every split to `directory`, unless the same shards are there already.

    Args:
        directory: created if it is missing. Shards of another sample in it are replaced; files that this function did
            not write are never touched.
        num_videos: by split; file names start with the split's name.
        num_shards: of the largest split; a smaller split has proportionally fewer, at least one.
        num_classes: of the labels.
        seed: of the world (data/sample/world.py) and its videos.
        features: widths by name; None: the features of YouTube-8M at that level.
        level: of the records.
        num_frames: of the longest video, at frame and segment level; the shortest has half as many.
        keys: as `Schema.keys`; None: the usual ones.

    Returns:
        The paths of the shards by split.

    Raises:
        DataError: a file of that name exists and belongs to no sample.
        ValueError: a setting is out of its range.
    """
    directory = Path(directory)
    marker = directory / MARKER
    settings: dict[str, Any] = {
        "num_videos": dict(num_videos),
        "num_shards": num_shards,
        "num_classes": num_classes,
        "seed": seed,
        "features": dict(features or FEATURES[level]),
    }
    if level != "video":
        settings |= {"level": level, "num_frames": num_frames}
    if keys:
        settings["keys"] = dict(keys)
    written = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {"settings": None, "files": {}}
    sizes = {path.name: path.stat().st_size for path in directory.glob("*.tfrecord")}
    largest = max(num_videos.values())
    if written["settings"] != settings or any(sizes.get(name) != size for name, size in written["files"].items()):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=directory) as scratch:
            shards = [
                shard
                for split, count in num_videos.items()
                for shard in write_shards(
                    scratch,
                    num_videos=count,
                    num_shards=num_shards if count == largest else max(1, round(num_shards * count / largest)),
                    num_classes=num_classes,
                    seed=seed,
                    features=features,
                    prefix=split,
                    level=level,
                    num_frames=num_frames,
                    keys=keys,
                )
            ]
            files = {shard.name: shard.stat().st_size for shard in shards}
            if strangers := sorted((files.keys() & sizes.keys()) - written["files"].keys()):
                raise DataError(f"{directory / strangers[0]} exists and belongs to no sample; give another folder")
            # Until the last line the marker lists all files but no settings: the sample is incomplete.
            _mark(marker, None, written["files"] | files)
            for name in written["files"]:
                (directory / name).unlink(missing_ok=True)
            for shard in shards:
                os.replace(shard, directory / shard.name)
            _mark(marker, settings, files)
            written = {"files": files}
    names = sorted(written["files"])
    return {split: [directory / name for name in names if _split(name) == split] for split in num_videos}


def _mark(marker: Path, settings: Mapping[str, Any] | None, files: Mapping[str, int]) -> None:
    with replacing(marker) as pending:
        pending.write_text(json.dumps({"settings": settings, "files": files}, indent=1) + "\n", encoding="utf-8")


def write_shards(
    directory: str | os.PathLike[str],
    *,
    num_videos: int,
    num_shards: int,
    num_classes: int,
    seed: int,
    features: Mapping[str, int] | None = None,
    prefix: str = "train",
    level: Level = "video",
    num_frames: int = NUM_FRAMES,
    keys: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes the shards of one split; their bytes depend on the arguments alone.

    Splits of one seed, with different prefixes, share the world and no video.

    Args:
        directory: created if it is missing.
        num_videos: of all shards together.
        num_shards: at most 10000.
        num_classes: of the labels.
        seed: of the world (data/sample/world.py) and its videos.
        features: widths by name; None: the features of YouTube-8M at that level.
        prefix: the split; file names are the prefix, four digits and `.tfrecord`.
        level: of the records.
        num_frames: of the longest video, at frame and segment level; the shortest has half as many.
        keys: as `Schema.keys`; None: the usual ones.

    Returns:
        The paths of the shards.

    Raises:
        ValueError: a setting is out of its range.
    """
    schema = Schema(
        features=features or FEATURES[level],
        num_classes=num_classes,
        level=level,
        max_frames=num_frames,
        keys=keys or {},
    )
    for name, allowed, number in (
        ("num_shards", SHARDS, num_shards),
        ("num_videos", VIDEOS, num_videos),
        ("seed", SEED, seed),
    ):
        if not allowed.holds(number):
            raise ValueError(f"{name} must be {allowed}, but got {number}")
    Path(directory).mkdir(parents=True, exist_ok=True)
    world = World.of(schema, seed)
    bounds = [num_videos * shard // num_shards for shard in range(num_shards + 1)]
    paths = []
    for shard, (start, stop) in enumerate(pairwise(bounds)):
        path = Path(directory, f"{prefix}{shard:04d}.tfrecord")
        rng = np.random.default_rng([seed, zlib.crc32(prefix.encode()), shard])
        ids = _ids(prefix, seed, start, stop)
        if level == "video":
            _write(path, map(partial(_video, schema), ids, world.videos(stop - start, rng)))
        else:
            _write(path, map(partial(_frame_video, schema), ids, world.frames(stop - start, rng)))
        paths.append(path)
    return paths


def _ids(prefix: str, seed: int, start: int, stop: int) -> Iterator[bytes]:
    """Yields an id of four letters per video, all different: an affine permutation of the split's range of numbers."""
    slot = {"train": 0, "validate": 1, "test": 2}.get(prefix, 3 + zlib.crc32(prefix.encode()) % (_SLOTS - 3))
    for number in range(slot * (_NUM_IDS // _SLOTS) + start, slot * (_NUM_IDS // _SLOTS) + stop):
        code = (number * 7_368_787 + seed) % _NUM_IDS  # a prime that does not divide 62 ** 4
        letters = []
        for _ in range(4):
            code, letter = divmod(code, len(_ID_LETTERS))
            letters.append(_ID_LETTERS[letter])
        yield bytes(letters)


def _video(schema: Schema, video_id: bytes, video: tuple[list[int], NDArray[np.float32]]) -> bytes:
    """Serialises a tf.train.Example."""
    from tfrecord.example_pb2 import Example  # here, since it imports torch
    from tfrecord.writer import TFRecordWriter

    labels, features_D = video
    datum = {schema.key(ID): (video_id, "byte"), schema.key(LABELS_KEY): (labels, "int")}
    datum |= {schema.key(name): (features_D[columns].tolist(), "float") for name, columns in schema.columns.items()}
    # TFRecordWriter orders the keys at random; a deterministic serialisation sorts them, so that the bytes repeat.
    return Example.FromString(TFRecordWriter.serialize_tf_example(datum)).SerializeToString(deterministic=True)


def _frame_video(schema: Schema, video_id: bytes, video: FrameVideo) -> bytes:
    """Serialises a tf.train.SequenceExample."""
    from tfrecord.example_pb2 import SequenceExample

    record = SequenceExample()
    context = record.context.feature
    context[schema.key(ID)].bytes_list.value.append(video_id)
    context[schema.key(LABELS_KEY)].int64_list.value.extend(video.labels)
    if schema.level == "segment":
        context[schema.key(SEGMENT_START)].int64_list.value.extend(start for start, _, _ in video.ratings)
        context[schema.key(SEGMENT_LABELS)].int64_list.value.extend(label for _, label, _ in video.ratings)
        context[schema.key(SEGMENT_SCORES)].float_list.value.extend(score for _, _, score in video.ratings)
    for name, columns in schema.columns.items():
        frames = record.feature_lists.feature_list[schema.key(name)].feature
        for frame in video.bytes_TD[:, columns]:
            frames.add().bytes_list.value.append(frame.tobytes())
    return bytes(record.SerializeToString(deterministic=True))


def _write(path: Path, records: Iterator[bytes]) -> None:
    from tfrecord.writer import TFRecordWriter

    writer = TFRecordWriter(os.fspath(path))
    try:
        for record in records:
            length = struct.pack("<Q", len(record))
            writer.file.write(length + writer.masked_crc(length) + record + writer.masked_crc(record))
    finally:
        writer.close()


def _split(name: str) -> str:
    """Returns the prefix of a shard's name."""
    return name.removesuffix(".tfrecord")[:-4]
