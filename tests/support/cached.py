"""Small shards and their caches: written, damaged, and compared with decoding shard by shard."""

import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
from tfrecord import TFRecordWriter

from data.cache import build
from data.cache.columns import columns_of
from data.frames import decode, decode_blocks
from data.schema import Schema
from tests.support.workplace import PROJECT

SCHEMA = Schema(features={"rgb": 3, "audio": 2}, num_classes=7)
COLUMNS = [column.finished for column in columns_of(SCHEMA, "float16")]


def make_videos(num_videos, seed=0):
    """Videos as the `tfrecord` package takes them."""
    rng = np.random.default_rng(seed)
    return [
        {
            "id": (f"{seed}-{row}".encode(), "byte"),
            "labels": (sorted(rng.choice(7, rng.integers(1, 4), replace=False).tolist()), "int"),
            "rgb": (rng.normal(size=3).tolist(), "float"),
            "audio": (rng.normal(size=2).tolist(), "float"),
        }
        for row in range(num_videos)
    ]


def write(path, videos):
    """Writes a shard with the `tfrecord` package; returns its path."""
    writer = TFRecordWriter(str(path))
    for video in videos:
        writer.write(video)
    writer.close()
    return str(path)


def damage(path):
    """Flips a bit of the last record."""
    data = bytearray(Path(path).read_bytes())
    data[-6] ^= 1
    Path(path).write_bytes(data)


def assert_holds(cached, paths, dtype="float16"):
    """The columns are those of the shards, decoded one by one and concatenated."""
    parts = [decode(path, SCHEMA) for path in paths]
    assert cached.num_videos == sum(len(part.ids) for part in parts)
    assert cached.features_ND.shape == (cached.num_videos, 5)
    assert cached.features_ND.dtype == dtype
    expected_ND = np.concatenate([np.zeros((0, 5)), *(part.features_ND for part in parts)]).astype(dtype)
    np.testing.assert_array_equal(cached.features_ND, expected_ND)
    assert cached.ids.tolist() == [video for part in parts for video in part.ids.tolist()]
    labels = [part.label_indices[a:b].tolist() for part in parts for a, b in windows(part.label_offsets)]
    assert [cached.label_indices[a:b].tolist() for a, b in windows(cached.label_offsets)] == labels
    assert cached.label_offsets.dtype == np.int64
    assert cached.label_indices.dtype == np.int32
    assert cached.damaged() == []


def windows(offsets):
    """Begin and end of every row."""
    return list(pairwise(offsets))


class Decodings:
    """Records the shards that are decoded in this process; may interrupt the process before one of them."""

    def __init__(self, monkeypatch, stop_after=None):
        self.paths, self.stop_after = [], stop_after
        monkeypatch.setattr(build, "decode_blocks", self)

    def __call__(self, path, reading):
        if len(self.paths) == self.stop_after:
            raise KeyboardInterrupt
        self.paths.append(path)
        return decode_blocks(path, reading)


def start(code, *arguments):
    """Starts a Python process with that code."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process):
    """The words that a process printed, when it has ended well."""
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out.split()
