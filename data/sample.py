"""Sample shards in the real format, learnable: the default data, the tests' and the benchmarks'.

    python -m data.sample DIR [--level video|frame|segment] [--train 4000] [--validate 1000] [--test 1000] [--shards 4]
                              [--classes 64] [--seed 1] [--frames 30]

Every split draws its videos from one world, which is the seed's: classes come in groups that like to share a video,
some are far more frequent than others (Zipf), and each is a direction in a small latent space. A video's latent vector
is the sum of its classes' directions, and noise; its features are a fixed random map of that vector, and more noise,
with about the means and variances of the real ones. The latent noise is what keeps a perfect model from being right.

At frame level a class is seen in one stretch of its video's frames, a quarter to a half of them, so whoever finds the
frames that matter does better than their average. At segment level some seconds of a video are rated for a class or
two: one of the video's, that is there or not, and now and then another.

The files are written by the `tfrecord` package (protobuf, CRC, file), which knows nothing of our reader.

Shapes   N videos of a shard   C classes   L latent directions   D columns of features   T frames of a video
"""

import argparse
import json
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.schema import (
    FEATURES,
    LABELS_KEY,
    SEGMENT_FRAMES,
    SEGMENT_LABELS,
    SEGMENT_SCORES,
    SEGMENT_START,
    Level,
    Schema,
)

NUM_VIDEOS: Final[Mapping[str, int]] = {"train": 4000, "validate": 1000, "test": 1000}
MARKER: Final = "sample.json"  # what was written, with which settings

_LATENT = 32
_GROUP = 8  # classes that like to share a video
_TOGETHER = 12.0  # times as likely
_NOISE = 0.18  # in the latent space, where a class has length 1: what limits every model
_ID_LETTERS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NUM_IDS: Final = len(_ID_LETTERS) ** 4
NUM_FRAMES: Final = 30  # of the longest video
_SLOTS: Final = 16  # of the ids: one a split, so that no video is in two


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
) -> dict[str, list[Path]]:
    """Shards of every split, under `directory`; nothing is written when the very same lie there already.

    Args:
        directory: made where it is missing. Shards of another sample in it are replaced; files that this function did
            not write are never touched.
        num_videos: by split; the split's name starts its files' names.
        num_shards: of the largest split; a smaller one has fewer, in proportion, at least one.
        num_classes: C.
        seed: of the world and its videos.
        features: widths by name; None: those of YouTube-8M at that level.
        level: of the records.
        num_frames: of the longest video, the shortest has half as many; at frame and segment level.

    Returns:
        The shards of each split.

    Raises:
        DataError: a file of that name is there, and no sample's.
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
    written = json.loads(marker.read_text()) if marker.exists() else {"settings": None, "files": {}}
    sizes = {path.name: path.stat().st_size for path in directory.glob("*.tfrecord")}
    most = max(num_videos.values())
    if written["settings"] != settings or any(sizes.get(name) != size for name, size in written["files"].items()):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=directory) as scratch:
            shards = [
                shard
                for split, count in num_videos.items()
                for shard in write_shards(
                    scratch,
                    num_videos=count,
                    num_shards=num_shards if count == most else max(1, round(num_shards * count / most)),
                    num_classes=num_classes,
                    seed=seed,
                    features=features,
                    prefix=split,
                    level=level,
                    num_frames=num_frames,
                )
            ]
            files = {shard.name: shard.stat().st_size for shard in shards}
            if strangers := sorted((files.keys() & sizes.keys()) - written["files"].keys()):
                raise DataError(f"{directory / strangers[0]} is there and no sample's: give another folder")
            # From here to the last line the marker claims every file, and says of none that it is whole.
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
    pending = marker.with_name(f".{marker.name}.{os.getpid()}")
    pending.write_text(json.dumps({"settings": settings, "files": files}, indent=1) + "\n")
    os.replace(pending, marker)


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
) -> list[Path]:
    """Shards of one split: `prefix` + four digits + `.tfrecord`, their bytes a pure function of the arguments.

    Splits of one seed (other prefixes) share the labelling, and no video.

    Raises:
        ValueError: a setting is out of its range.
    """
    schema = Schema(features=features or FEATURES[level], num_classes=num_classes, level=level, max_frames=num_frames)
    if not 1 <= num_shards <= 10_000:
        raise ValueError(f"num_shards must be in [1, 10000], but got {num_shards}")
    if not 0 <= num_videos <= _NUM_IDS // _SLOTS:
        raise ValueError(f"num_videos must be in [0, {_NUM_IDS // _SLOTS}] (ids have 4 letters), but got {num_videos}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, but got {seed}")
    Path(directory).mkdir(parents=True, exist_ok=True)
    world = _World.of(schema, seed)
    bounds = [num_videos * shard // num_shards for shard in range(num_shards + 1)]
    paths = []
    for shard, (start, stop) in enumerate(pairwise(bounds)):
        path = Path(directory, f"{prefix}{shard:04d}.tfrecord")
        rng = np.random.default_rng([seed, zlib.crc32(prefix.encode()), shard])
        ids = _ids(prefix, seed, start, stop)
        if level == "video":
            _write(path, map(partial(_video, schema), ids, world.videos(stop - start, rng)))
        else:
            _write(path, map(partial(_frames, schema), ids, world.frames(stop - start, rng)))
        paths.append(path)
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """What all videos of a seed have in common."""

    schema: Schema
    log_frequency_C: NDArray[np.float32]
    group_C: NDArray[np.int64]
    directions_CL: NDArray[np.float32]
    map_LD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    noise_D: NDArray[np.float32]

    @classmethod
    def of(cls, schema: Schema, seed: int) -> "_World":
        rng = np.random.default_rng([seed, 0])
        C = schema.num_classes
        group_C = rng.permutation(C) // _GROUP
        directions_CL = rng.standard_normal((C, _LATENT)) + rng.standard_normal((C, _LATENT))[group_C] * 0.5
        directions_CL /= np.linalg.norm(directions_CL, axis=1, keepdims=True)
        # The real features' variance: 0.22 a column of mean_rgb, 0.47 of mean_audio, which is the narrower one.
        deviation_D = np.concatenate([np.full(w, (0.22 if w > 256 else 0.47) ** 0.5) for w in schema.features.values()])
        size = (2.6 + _LATENT * _NOISE**2) ** 0.5  # of a latent vector: 2.6 labels a video
        map_LD = rng.standard_normal((_LATENT, schema.width)) * deviation_D * 0.7 / size
        return cls(
            schema=schema,
            log_frequency_C=-np.log(np.arange(C, dtype=np.float32) + 1.5),
            group_C=group_C,
            directions_CL=directions_CL.astype(np.float32),
            map_LD=map_LD.astype(np.float32),
            mean_D=rng.uniform(-0.04, 0.04, schema.width).astype(np.float32),
            noise_D=(deviation_D * 0.7).astype(np.float32),
        )

    def videos(self, num_videos: int, rng: np.random.Generator) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Labels and features_D of each."""
        labels_NC = self._labels(num_videos, rng)
        latent_NL = labels_NC.astype(np.float32) @ self.directions_CL
        latent_NL += _NOISE * rng.standard_normal(latent_NL.shape, np.float32)
        features_ND = rng.standard_normal((num_videos, self.schema.width), np.float32)
        features_ND *= self.noise_D
        features_ND += latent_NL @ self.map_LD + self.mean_D
        features_ND.clip(-2, 2, out=features_ND)
        for labels_C, features_D in zip(labels_NC, features_ND, strict=True):
            yield np.flatnonzero(labels_C).tolist(), features_D

    def frames(self, num_videos: int, rng: np.random.Generator) -> Iterator["_Frames"]:
        """Labels and frames of each video."""
        for labels_C in self._labels(num_videos, rng):
            labels = np.flatnonzero(labels_C)
            num_frames = int(rng.integers(-(-self.schema.max_frames // 2), self.schema.max_frames, endpoint=True))
            shown_N = np.maximum(1, (num_frames * rng.uniform(0.25, 0.5, len(labels))).astype(np.int64))
            start_N = rng.integers(0, num_frames - shown_N, endpoint=True)
            since_TN = np.arange(num_frames)[:, None] - start_N
            seen_TN = (since_TN >= 0) & (since_TN < shown_N)
            latent_TL = seen_TN.astype(np.float32) @ self.directions_CL[labels]
            latent_TL += _NOISE * rng.standard_normal(latent_TL.shape, np.float32)
            frames_TD = rng.standard_normal((num_frames, self.schema.width), np.float32)
            frames_TD *= self.noise_D
            frames_TD += latent_TL @ self.map_LD + self.mean_D
            ratings = self._ratings(labels, seen_TN, rng) if self.schema.level == "segment" else []
            yield _Frames(labels=labels.tolist(), bytes_TD=quantise(frames_TD), ratings=ratings)

    def _ratings(
        self, labels: NDArray[np.int64], seen_TN: NDArray[np.bool_], rng: np.random.Generator
    ) -> list[tuple[int, int, float]]:
        """(start, class, score) of about half of the video's segments."""
        ratings = []
        for start in range(0, max(len(seen_TN) - SEGMENT_FRAMES, 0) + 1, SEGMENT_FRAMES):
            if rng.random() < 0.5:
                continue
            one = int(rng.integers(len(labels)))
            there = seen_TN[start : start + SEGMENT_FRAMES, one].mean() >= 0.5
            ratings.append((start, int(labels[one]), float(there)))
            other = int(rng.integers(self.schema.num_classes))
            if rng.random() < 0.3 and other not in labels:
                ratings.append((start, other, 0.0))
        return ratings

    def _labels(self, num_videos: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """One to six a video: the first by its frequency, then others, likelier from its group (Gumbel top-k)."""
        C = self.schema.num_classes
        rows = np.arange(num_videos)
        score_NC = self.log_frequency_C + rng.gumbel(size=(num_videos, C)).astype(np.float32)
        first_N = score_NC.argmax(axis=1)
        score_NC += np.log(_TOGETHER).astype(np.float32) * (self.group_C == self.group_C[first_N][:, None])
        score_NC[rows, first_N] = np.inf
        count_N = np.minimum(1 + rng.poisson(1.6, num_videos).clip(max=5), C)
        order_NK = np.argsort(-score_NC, axis=1)[:, :6]
        labels_NC = np.zeros((num_videos, C), np.bool_)
        labels_NC[rows[:, None], order_NK] = np.arange(order_NK.shape[1]) < count_N[:, None]
        return labels_NC


def _ids(prefix: str, seed: int, start: int, stop: int) -> Iterator[bytes]:
    """Four letters a video, all different: an affine permutation of numbers, of which every split has its own range."""
    slot = {"train": 0, "validate": 1, "test": 2}.get(prefix, 3 + zlib.crc32(prefix.encode()) % (_SLOTS - 3))
    for number in range(slot * (_NUM_IDS // _SLOTS) + start, slot * (_NUM_IDS // _SLOTS) + stop):
        code = (number * 7_368_787 + seed) % _NUM_IDS  # a prime, and none of the factors of 62 ** 4
        letters = []
        for _ in range(4):
            code, letter = divmod(code, len(_ID_LETTERS))
            letters.append(_ID_LETTERS[letter])
        yield bytes(letters)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    labels: list[int]
    bytes_TD: NDArray[np.uint8]
    ratings: list[tuple[int, int, float]]  # start, class, score


def quantise(frames_TD: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The byte of each value, rounded down: what `DEQUANTISE_SCALE` and `DEQUANTISE_SHIFT` take for granted."""
    return ((frames_TD.clip(-2, 2) + 2) * (255 / 4)).astype(np.uint8)


def _video(schema: Schema, video_id: bytes, video: tuple[list[int], NDArray[np.float32]]) -> bytes:
    """A tf.train.Example."""
    from tfrecord.example_pb2 import Example  # here, since it brings torch with it
    from tfrecord.writer import TFRecordWriter

    labels, features_D = video
    datum = {"id": (video_id, "byte"), LABELS_KEY: (labels, "int")}
    datum |= {name: (features_D[columns].tolist(), "float") for name, columns in schema.columns.items()}
    # TFRecordWriter orders the keys by chance, another way in every process. Sorted, the bytes repeat.
    return Example.FromString(TFRecordWriter.serialize_tf_example(datum)).SerializeToString(deterministic=True)


def _frames(schema: Schema, video_id: bytes, video: _Frames) -> bytes:
    """A tf.train.SequenceExample."""
    from tfrecord.example_pb2 import SequenceExample

    record = SequenceExample()
    context = record.context.feature
    context["id"].bytes_list.value.append(video_id)
    context[LABELS_KEY].int64_list.value.extend(video.labels)
    if schema.level == "segment":
        context[SEGMENT_START].int64_list.value.extend(start for start, _, _ in video.ratings)
        context[SEGMENT_LABELS].int64_list.value.extend(label for _, label, _ in video.ratings)
        context[SEGMENT_SCORES].float_list.value.extend(score for _, _, score in video.ratings)
    for name, columns in schema.columns.items():
        frames = record.feature_lists.feature_list[name].feature
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
    """The prefix of a shard's name."""
    return name.removesuffix(".tfrecord")[:-4]


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m data.sample`."""
    parser = argparse.ArgumentParser(prog="python -m data.sample", description="Writes learnable sample shards.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--level", choices=tuple(FEATURES), default="video", help="of the records (default: video)")
    for split, count in NUM_VIDEOS.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help="videos (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=4, metavar="N", help="of train (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=64, metavar="C", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, default=NUM_FRAMES, metavar="T", help="of the longest video (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        splits = write_splits(
            arguments.directory,
            num_videos={split: getattr(arguments, split) for split in NUM_VIDEOS},
            num_shards=arguments.shards,
            num_classes=arguments.classes,
            seed=arguments.seed,
            level=arguments.level,
            num_frames=arguments.frames,
        )
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for paths in splits.values() for path in paths)
    shards = {split: f"{len(paths)} shard{'s' * (len(paths) != 1)}" for split, paths in splits.items()}
    counts = ", ".join(f"{getattr(arguments, split)} {split} in {shards[split]}" for split in splits)
    print(f"{counts}: {size / 1e6:.1f} MB in {arguments.directory}, {arguments.classes} classes, seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
