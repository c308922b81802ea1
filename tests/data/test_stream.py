"""Features that are read again in every epoch: the videos of a cache, in an order that depends on the epoch alone."""

import pickle
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches import Batches
from data.cache import columns as columns_of_cache
from data.cache.store import built_cache, find_cache, open_cache
from data.errors import ShardError
from data.sample import write_shards
from data.sampling import FramesConfig
from data.schema import Schema
from tests.support.cached import SCHEMA, make_videos, write

SIZES = [30, 1, 17, 44, 8, 25, 12]
NUM_VIDEOS = sum(SIZES)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Seven shards of one to 44 videos."""
    folder = tmp_path_factory.mktemp("many")
    return [write(folder / f"{i}.tfrecord", make_videos(size, seed=i)) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=["frame", "segment"])
def of_frames(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    schema = Schema(features={"rgb": 6, "audio": 2}, num_classes=9, level=request.param, max_frames=20)
    write_shards(
        folder,
        num_videos=90,
        num_shards=5,
        num_classes=9,
        features=schema.features,
        level=request.param,
        num_frames=25,
        seed=4,
    )
    return sorted(map(str, folder.glob("*.tfrecord"))), schema


def both(shards, folder, schema=SCHEMA, buffer=20, **options):
    """The cache of everything, and the one without features."""
    return open_cache(shards, schema, folder, **options), open_cache(shards, schema, folder, buffer=buffer, **options)


def rows_of(batches, epoch, first=0):
    return torch.cat([batch.rows for batch in batches.epoch(epoch, first)]).tolist()


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.rows, b.rows)
        for x, y in zip(a.inputs, b.inputs, strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)
        for name in ("label_offsets", "label_indices", "rated_offsets", "rated_indices"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None and y is None) or torch.equal(x, y)


def test_a_cache_without_features_knows_all_else(many, folder):
    whole, none = both(many, folder)
    assert not (none.directory / "features.npy").exists() and none.directory != whole.directory
    assert none.features_ND.shape == (0, 5) and none.features_ND.dtype == whole.features_ND.dtype
    assert none.fingerprint == whole.fingerprint  # a search compares the trials of both
    for name in ("ids", "label_offsets", "label_indices"):
        np.testing.assert_array_equal(getattr(none, name), getattr(whole, name))
    for name in ("num_videos", "mean_D", "variance_D", "label_counts_C"):
        np.testing.assert_array_equal(getattr(none.statistics(), name), getattr(whole.statistics(), name))
    assert none.damaged() == []
    (none.directory / columns_of_cache.STATISTICS).unlink()
    np.testing.assert_array_equal(none.totals().moments.mean_D, whole.totals().moments.mean_D)
    assert none.num_bytes < whole.num_bytes + 7 * 88
    assert built_cache(many, SCHEMA, folder, features=False).directory == none.directory
    assert find_cache(folder, whole.fingerprint, "float16").directory == whole.directory


def test_a_killed_build_without_features_resumes(many, folder, monkeypatch):
    """What was summed up of the features of the shards before is kept, so they are not decoded again."""
    finished = open_cache(many[:3], SCHEMA, folder / "other", buffer=20)

    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.shards_done == 3:
            raise Killed

    with pytest.raises(Killed):
        open_cache(many, SCHEMA, folder, buffer=20, progress=kill)
    seen = []
    resumed = open_cache(many, SCHEMA, folder, buffer=20, progress=lambda progress: seen.append(progress.shards_done))
    assert seen[0] == 3
    whole = open_cache(many, SCHEMA, folder)
    np.testing.assert_allclose(resumed.statistics().mean_D, whole.statistics().mean_D, rtol=1e-6)
    assert resumed.num_videos == NUM_VIDEOS and finished.num_videos == sum(SIZES[:3])


@pytest.mark.parametrize("buffer", [1, 20, 60])
@pytest.mark.parametrize("batch_size", [1, 16, 50])
def test_an_epoch_has_each_video_once_with_its_own_features_and_labels(many, folder, buffer, batch_size):
    whole, none = both(many, folder, buffer=buffer)
    batches = Batches(none, batch_size=batch_size, shuffle=True, seed=3)
    assert len(batches) == -(-NUM_VIDEOS // batch_size)
    assert sorted(rows_of(batches, 0)) == sorted(rows_of(batches, 1)) == list(range(NUM_VIDEOS))
    assert rows_of(batches, 0) != rows_of(batches, 1)
    for batch in batches.epoch(2):
        np.testing.assert_array_equal(batch.features_BD.numpy(), whole.features_ND[batch.rows.numpy()])
        begins = whole.label_offsets[batch.rows.numpy()]
        assert batch.label_indices[batch.label_offsets[:-1]].tolist() == whole.label_indices[begins].tolist()


def test_an_epoch_in_order_is_that_of_a_cache(many, folder):
    whole, none = both(many, folder)
    rows = np.flatnonzero(np.arange(NUM_VIDEOS) % 5 != 2)
    for options in ({"rows": None}, {"rows": rows}, {"rows": rows[:3]}, {"rows": rows[:0]}):
        left, right = (Batches(cache, batch_size=13, shuffle=False, **options) for cache in (whole, none))
        assert_same(left.epoch(0), right.epoch(0))


def test_a_buffer_of_all_videos_gives_the_order_of_a_cache(many, folder):
    whole, none = both(many, folder, buffer=NUM_VIDEOS)
    for rows in (None, np.arange(5, 120, 3)):
        left, right = (
            Batches(cache, batch_size=16, shuffle=True, seed=7, rows=rows, drop_last=True) for cache in (whole, none)
        )
        assert len(left) == len(right)
        assert_same(left.epoch(4), right.epoch(4))


@pytest.mark.parametrize("frames", [FramesConfig(), FramesConfig(sampling="random", count=7)], ids=["all", "random"])
def test_frames_are_those_of_a_cache(of_frames, folder, frames):
    shards, schema = of_frames
    whole, none = both(shards, folder, schema)
    for options in ({}, {"rows": np.arange(1, whole.num_videos, 3)}):
        left, right = (
            Batches(cache, batch_size=11, shuffle=False, frames=frames, **options) for cache in (whole, none)
        )
        assert_same(left.epoch(0), right.epoch(0))
    batches = Batches(none, batch_size=11, shuffle=True, seed=2, frames=frames)
    assert sorted(rows_of(batches, 0)) == list(range(whole.num_videos))
    assert none.statistics().num_videos == whole.statistics().num_videos
    np.testing.assert_array_equal(none.statistics().mean_D, whole.statistics().mean_D)


def test_the_videos_of_a_window_come_from_several_shards_of_any_place(many, folder):
    _, none = both(many, folder, buffer=20)
    order = none.stream.order(np.arange(NUM_VIDEOS), (1, 0))
    sizes = np.diff(order.bounds)
    assert (sizes[:-1] >= 20).all() and sizes.sum() == NUM_VIDEOS and len(sizes) > 2
    firsts = {none.stream.order(np.arange(NUM_VIDEOS), (1, epoch)).rows[0] for epoch in range(20)}
    assert len(firsts) > 10


def test_a_resumed_epoch_gives_the_batches_that_are_left(many, folder):
    _, none = both(many, folder)
    batches = Batches(none, batch_size=8, shuffle=True, seed=1, drop_last=True)
    whole = list(batches.epoch(3))
    for first in (1, 5, len(whole) - 1, len(whole)):
        assert_same(whole[first:], batches.epoch(3, first))


def test_epochs_are_the_same_in_another_process_and_with_any_number_of_processes_that_decode(many, folder):
    _, none = both(many, folder)
    alone = list(Batches(none, batch_size=16, shuffle=True, seed=9).epoch(5))
    decoded_by_two = open_cache(many, SCHEMA, folder, buffer=20, workers=2)
    assert_same(alone, Batches(decoded_by_two, batch_size=16, shuffle=True, seed=9).epoch(5))
    script = (
        "import pickle, sys; from data.batches import Batches\n"
        "cache = pickle.load(sys.stdin.buffer)\n"
        "for batch in Batches(cache, batch_size=16, shuffle=True, seed=9).epoch(5): print(batch.rows.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(none), capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [str(batch.rows.tolist()) for batch in alone]


@pytest.mark.parametrize("workers", [None, 2])
def test_an_epoch_that_is_left_leaves_no_thread_and_no_process(many, folder, workers):
    cache = open_cache(many, SCHEMA, folder, buffer=20, workers=workers)
    before = {thread.name for thread in threading.enumerate()}
    epoch = Batches(cache, batch_size=4, shuffle=True).epoch(0)
    next(epoch)
    assert any(thread.name.startswith("stream") for thread in threading.enumerate())
    epoch.close()
    left = {thread.name for thread in threading.enumerate()} - before
    assert not [name for name in left if name.startswith(("stream", "workers"))]


def test_at_most_two_windows_are_decoded(many, folder, monkeypatch):
    """The memory is bounded: the decoder stops where two windows wait, however many shards there are."""
    from data.cache import stream

    decoded = []
    original = stream._decode
    monkeypatch.setattr(stream, "_decode", lambda job: (decoded.append(job.path), original(job))[1])
    _, none = both(many, folder, buffer=1)
    windows = none.stream.windows(none.stream.order(np.arange(NUM_VIDEOS), (1, 0)))
    for number in range(1, 4):
        next(windows)
        deadline = threading.Event()
        deadline.wait(0.2)
        assert len(decoded) == number + 1
    windows.close()


@pytest.mark.parametrize("change", ["other videos", "fewer videos", "more videos"])
def test_a_shard_that_has_changed_is_told(tmp_path, folder, change):
    shards = [write(tmp_path / f"{i}.tfrecord", make_videos(10, seed=i)) for i in range(3)]
    none = open_cache(shards, SCHEMA, folder, buffer=5)
    write(Path(shards[1]), make_videos({"other": 10, "fewer": 4, "more": 15}[change.split()[0]], seed=77))
    with pytest.raises(ShardError, match=r"1\.tfrecord: changed since its labels were read; put the old shard back"):
        list(Batches(none, batch_size=4, shuffle=True).epoch(0))


def test_rows_that_a_stream_cannot_give_are_refused(many, folder):
    _, none = both(many, folder)
    with pytest.raises(ValueError, match="rows of a stream must be in ascending order"):
        Batches(none, batch_size=4, shuffle=False, rows=np.array([5, 2]))
    with pytest.raises(ValueError, match="several ranks read a stream by parts"):
        Batches(none, batch_size=4, shuffle=True, rank=0, world_size=2)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_read_their_own_shards_and_have_equally_many_batches(many, folder, ranks):
    _, none = both(many, folder)
    parted = none.in_parts(ranks)
    batches = [
        Batches(parted, batch_size=10, shuffle=True, rank=rank, world_size=ranks, drop_last=True)
        for rank in range(ranks)
    ]
    assert len({len(one) for one in batches}) == 1 and len({one.num_videos for one in batches}) == 1
    rows = [rows_of(one, 0) for one in batches]
    assert sum(map(len, rows)) == batches[0].num_videos == len(batches[0]) * 10
    for rank, own in enumerate(rows):
        assert len(set(own)) == len(own)
        assert all(parted.parts[rank] <= row < parted.parts[rank + 1] for row in own)
    scored = [
        rows_of(Batches(parted, batch_size=10, shuffle=False, rank=rank, world_size=ranks), 0) for rank in range(ranks)
    ]
    assert list(chain.from_iterable(scored)) == list(range(NUM_VIDEOS))


def test_an_epoch_that_is_left_while_batches_are_brought_to_a_device_ends_in_order(tmp_path, folder, monkeypatch):
    """The thread that brings batches reads windows: it has ended before the windows are closed."""
    from data.cache import stream

    def slow(job):
        time.sleep(0.1)
        yield from original(job)

    original = stream._decode
    monkeypatch.setattr(stream, "_decode", slow)
    shards = [write(tmp_path / f"{i}.tfrecord", make_videos(1, seed=i)) for i in range(8)]
    none = open_cache(shards, SCHEMA, folder, buffer=1)
    epoch = Batches(none, batch_size=1, shuffle=True, device="meta").epoch(0)
    assert next(epoch).features_BD.device.type == "meta"
    epoch.close()  # the next window is being decoded
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("stream", "batches"))]
