"""Changed shards: what is read of them is a part of what was written, and both parsers say the same of a record."""

import gzip
import random
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from crc32c import crc32c

from data.errors import ShardError
from data.frames import decode, decode_together
from data.sample import write_shards
from data.schema import Level, Schema
from data.tfrecord import framing, read_examples
from data.tfrecord.framing import count_records, read_records
from data.tfrecord.shards import DecodedShard, Reading
from fuzzed.mutation import changed
from fuzzed.targets import Target, expect

FEATURES = {"rgb": 3, "audio": 2}
CLASSES = 40


def framed(data: bytes) -> bytes:
    """A record with sound CRCs."""

    def mask(crc: int) -> bytes:
        return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF).to_bytes(4, "little")

    length = len(data).to_bytes(8, "little")
    return length + mask(crc32c(length)) + data + mask(crc32c(data))


def same(one: DecodedShard, other: DecodedShard) -> bool:
    """Whether two shards have the same values, to the last bit."""
    return all(
        np.array_equal(np.asarray(getattr(one, field.name)), np.asarray(getattr(other, field.name)))
        for field in fields(DecodedShard)
    )


class _Shards(Target):
    level: ClassVar[Level] = "video"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.schema = Schema(features=FEATURES, num_classes=CLASSES, level=self.level)
        (written,) = write_shards(
            folder / "sound",
            num_videos=6,
            num_shards=1,
            num_classes=CLASSES,
            seed=1,
            features=FEATURES,
            level=self.level,
            num_frames=8,
        )
        self.records = [data for _, data in read_records(written)]
        self.path = str(folder / "changed.tfrecord")

    def write(self, data: bytes, rng: random.Random) -> None:
        framing.BLOCK_BYTES = rng.choice((64, 1 << 20))  # a block of about one record, and of all of them
        Path(self.path).write_bytes(data)


class Framing(_Shards):
    """The bytes of the file: whatever is read is one of the records that were written."""

    kind = "framing"

    def run(self, rng: random.Random) -> None:
        self.write(self.packed(b"".join(map(framed, self.records)), rng), rng)
        try:
            streamed = [data for _, data in read_records(self.path)]
        except ShardError:
            streamed = None
        try:
            shard = decode(self.path, self.schema)
        except ShardError:
            expect(streamed is None, "a shard that is refused whole is streamed without an error")
            raise
        expect(streamed is not None, "a shard that is refused as a stream is decoded")
        assert streamed is not None
        expect(set(streamed) <= set(self.records), "a record that nobody wrote")
        expect(len(shard.ids) == len(streamed) == count_records(self.path), "counts of records that differ")
        ids = [example.id for example in read_examples(self.path)]
        expect(shard.ids.tolist() == ids, "other videos than in the stream")

    def packed(self, data: bytes, rng: random.Random) -> bytes:
        return changed(data, rng)


class Gzip(Framing):
    """As the bytes of a plain file, but the compressed ones are changed."""

    kind = "gzip"

    def packed(self, data: bytes, rng: random.Random) -> bytes:
        return changed(gzip.compress(data, rng.choice((0, 6)), mtime=0), rng)


class Zlib(Framing):
    """As gzip, with TensorFlow's other compression."""

    kind = "zlib"

    def packed(self, data: bytes, rng: random.Random) -> bytes:
        return changed(zlib.compress(data, rng.choice((0, 6))), rng)


class Records(_Shards):
    """Records with sound CRCs: all at once (data/tfrecord/lockstep.py) as one by one with protobuf."""

    kind = "records"

    def run(self, rng: random.Random) -> None:
        records = list(self.records)
        at = rng.randrange(len(records))
        records[at] = changed(records[at], rng)
        self.write(b"".join(map(framed, records)), rng)
        required = rng.random() < 0.7
        reading = Reading(schema=self.schema, require_labels=required)
        together = decode_together([self.path, self.path], reading)
        try:
            shard = decode(self.path, self.schema, require_labels=required)
        except ShardError as error:
            expect(all(str(one) == str(error) for one in together), f"decoded with others, but refused alone: {error}")
            raise
        expect(
            all(isinstance(one, DecodedShard) and same(one, shard) for one in together), "other values beside others"
        )
        for row, example in enumerate(read_examples(self.path)):
            begin, end = shard.label_offsets[row : row + 2]
            labels = np.unique(example.checked_labels(self.schema, required))
            expect(np.array_equal(shard.label_indices[begin:end], labels), f"other labels of record {row}")
            expect(shard.ids[row] == example.id, f"another id of record {row}")
            values = [self.feature(example, name, width) for name, width in FEATURES.items()]
            expect(np.array_equal(self.row(shard, row), np.concatenate(values, axis=-1)), f"other values of {row}")

    def feature(self, example: Any, name: str, width: int) -> Any:
        return example.values(name)

    def row(self, shard: DecodedShard, row: int) -> Any:
        return shard.features_ND[row]


class Frames(Records):
    """Records of frames: the lists of frames found by numpy as one by one with protobuf."""

    kind = "frames"
    level = "frame"

    def feature(self, example: Any, name: str, width: int) -> Any:
        return example.frames(name, width)

    def row(self, shard: DecodedShard, row: int) -> Any:
        assert shard.frame_offsets is not None
        return shard.features_ND[slice(*shard.frame_offsets[row : row + 2])]


class Segments(_Shards):
    """Records of rated segments, which protobuf alone reads: every class is in its range, every frame was written."""

    kind = "segments"
    level = "segment"

    def run(self, rng: random.Random) -> None:
        at = rng.randrange(len(self.records))
        records = [*self.records[:at], changed(self.records[at], rng), *self.records[at + 1 :]]
        self.write(b"".join(map(framed, records)), rng)
        shard = decode(self.path, self.schema, require_labels=rng.random() < 0.7)
        assert shard.rated_indices is not None and shard.frame_offsets is not None
        for classes in (shard.label_indices, shard.rated_indices):
            expect(not len(classes) or 0 <= classes.min() <= classes.max() < CLASSES, "a class outside the range")
        expect(shard.frame_offsets[-1] == len(shard.features_ND), "frames that no segment has")


TARGETS = (Framing, Gzip, Zlib, Records, Frames, Segments)
