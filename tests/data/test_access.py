"""What is read from the disk of a file that is larger than memory, as the kernel counts it."""

import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import access
from data.batches import Batches
from data.sampling import FramesConfig

NUM_VIDEOS, NUM_FRAMES, WIDTH = 250, 60, 1152


@pytest.fixture
def frames(tmp_path):
    """Columns of frames on the disk, 17 MB, of which nothing is in memory."""
    path = tmp_path / "features.npy"
    values = np.random.default_rng(1).integers(0, 256, (NUM_VIDEOS, NUM_FRAMES, WIDTH), dtype=np.uint8)
    values[:, :, 0] = np.arange(NUM_VIDEOS)[:, None]  # a frame begins with the number of its video
    np.save(path, values.reshape(-1, WIDTH))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    before = bytes_read()
    mapped = np.load(path, mmap_mode="r")
    assert mapped[-1].any()
    if bytes_read() == before:
        pytest.skip("the kernel does not count what is read of this file system")
    return SimpleNamespace(
        fingerprint="frames",
        features_ND=mapped,
        frame_offsets=np.arange(NUM_VIDEOS + 1) * NUM_FRAMES,
        label_offsets=np.arange(NUM_VIDEOS + 1),
        label_indices=np.zeros(NUM_VIDEOS, np.int32),
        rated_offsets=None,
        stream=None,
        parts=None,
        rated_indices=None,
    )


def bytes_read():
    """The bytes that this process has read from disks."""
    try:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        pytest.skip("needs /proc/self/io")
    return int(counts["read_bytes"])


def read_by_each_batch(columns):
    """What each of the first batches of ten videos reads, one random frame of each; other reads may be among them."""
    batches = Batches(columns, batch_size=10, shuffle=True, frames=FramesConfig(sampling="random", count=1)).epoch(0)
    read = []
    for _ in range(5):
        before = bytes_read()
        batch = next(batches)
        read.append(bytes_read() - before)
        assert batch.inputs[0][:, 0, 0].tolist() == batch.rows.tolist()
    return read


def test_random_frames_of_a_file_beyond_memory_read_little_more_than_themselves(frames, monkeypatch):
    monkeypatch.setattr(access.machine, "memory", lambda: 1 << 20)
    assert min(read_by_each_batch(frames)) <= 10 * 2 * mmap.PAGESIZE


def test_random_frames_of_a_file_that_fits_into_memory_read_what_is_around_them(frames):
    assert access.machine.memory() > 100 << 20
    assert max(read_by_each_batch(frames)) > 1 << 20


def test_a_pass_in_order_after_a_random_one_reads_ahead_again(frames, monkeypatch):
    monkeypatch.setattr(access.machine, "memory", lambda: 1 << 20)
    assert access.read_at_random(frames.features_ND)
    access.read_in_order(frames.features_ND)
    before = bytes_read()
    assert frames.features_ND[1000, 0] >= 0
    assert bytes_read() - before > 10 * WIDTH


@pytest.mark.parametrize("rows", [[], [0], [5, 3, 4, 3], list(range(3, 1003))])
def test_rows_are_read_before_they_are_asked_for(frames, rows, monkeypatch):
    monkeypatch.setattr(access.machine, "memory", lambda: 1 << 20)
    access.read_at_random(frames.features_ND)
    access.read_soon(frames.features_ND, np.array(rows, np.int64))
    before = bytes_read()
    assert frames.features_ND[rows].shape == (len(rows), WIDTH)
    assert bytes_read() == before


def test_what_is_no_memory_map_needs_no_advice(monkeypatch):
    monkeypatch.setattr(access.machine, "memory", lambda: 0)
    assert not access.read_at_random(np.zeros((4, 2)))
    access.read_in_order(np.zeros((4, 2)))
    access.read_soon(np.zeros((4, 2)), np.array([1]))
