"""Batches: every video once, in an order that is a pure function of (seed, epoch), the same on every device."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import batches as module
from data.batches import Batches, sample_rows
from data.cache.store import open_cache
from data.residency import Memory, Residency
from data.sample import write_shards
from data.schema import Schema


def columns(num_videos, width=3, num_classes=11, seed=0):
    """A cache-shaped object whose first feature is the row's number."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, num_videos)
    features_ND = rng.normal(size=(num_videos, width)).astype(np.float16)
    features_ND[:, 0] = np.arange(num_videos)
    return SimpleNamespace(
        fingerprint=f"{num_videos}-{seed}",
        features_ND=features_ND,
        label_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        label_indices=rng.integers(0, num_classes, lengths.sum()).astype(np.int32),
        frame_offsets=None,
        rated_offsets=None,
        stream=None,
        parts=None,
        rated_indices=None,
    )


def assert_same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in ("rows", "features_BD", "label_offsets", "label_indices"):
            x, y = getattr(a, name).cpu(), getattr(b, name).cpu()
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name


def assert_holds(batch, cache):
    """The batch agrees with the cache, video by video."""
    for b, row in enumerate(batch.rows.tolist()):
        np.testing.assert_array_equal(batch.features_BD[b].cpu().numpy(), cache.features_ND[row])
        begin, end = batch.label_offsets[b : b + 2].tolist()
        expected = cache.label_indices[cache.label_offsets[row] : cache.label_offsets[row + 1]]
        assert batch.label_indices[begin:end].tolist() == expected.tolist()
    assert batch.label_offsets[0] == 0
    assert batch.label_offsets[-1] == len(batch.label_indices)
    assert len(batch.label_offsets) == len(batch.rows) + 1


@settings(deadline=None)
@given(
    num_videos=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    window=st.integers(1, 5),
)
def test_ranks_share_every_batch_of_one_process_each_video_once_with_its_own_labels(
    num_videos, batch_size, world_size, drop_last, shuffle, window
):
    cache = columns(num_videos)
    if batch_size < world_size or (drop_last and num_videos < world_size):
        return
    given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    alone = Batches(cache, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCHES_PER_WINDOW", window)
        ranks = [Batches(cache, rank=rank, world_size=world_size, **given) for rank in range(world_size)]
        parts = [list(batches.epoch(3)) for batches in ranks]
    assert [len(batches) for batches in ranks] == [len(epoch) for epoch in parts]
    for batch in chain(*parts):
        assert_holds(batch, cache)
    wholes = [batch.rows.tolist() for batch in alone.epoch(3)]
    for number, whole in enumerate(wholes):
        shares = [epoch[number].rows.tolist() for epoch in parts if number < len(epoch)]
        assert shares == [whole[rank::world_size] for rank in range(len(shares))]
        assert sorted(chain(*shares)) == sorted(whole)
        if drop_last:  # all step together
            assert len(shares) == world_size and max(map(len, shares)) - min(map(len, shares)) <= 1
    seen = list(chain(*wholes))
    assert len(seen) == len(set(seen)) == alone.num_videos == ranks[-1].num_videos
    if drop_last:
        assert len(seen) == (num_videos - num_videos % batch_size or num_videos)
    else:
        assert sorted(seen) == list(range(num_videos))


def test_the_order_changes_with_the_epoch_and_the_seed_and_nothing_else():
    cache = columns(50)
    orders = {
        (seed, epoch): tuple(Batches(cache, batch_size=8, shuffle=True, seed=seed).order(epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 9
    again = Batches(cache, batch_size=8, shuffle=True, seed=2)
    list(again.epoch(1))
    assert tuple(again.order(1)) == orders[2, 1]


def test_an_order_prepared_ahead_is_the_one_asked_for():
    cache = columns(50)
    batches = Batches(cache, batch_size=8, shuffle=True, seed=2)
    for epoch in (0, 1, 2, 1, 5, 6, 0):
        assert_same(batches.epoch(epoch), Batches(cache, batch_size=8, shuffle=True, seed=2).epoch(epoch))


def test_orders_are_those_of_earlier_versions():
    """A checkpoint's position must mean the same videos after an update: changing this breaks every resume."""
    assert Batches(columns(8), batch_size=8, shuffle=True, seed=5).order(2).tolist() == [0, 4, 5, 7, 3, 1, 2, 6]


def test_without_shuffling_rows_come_as_given():
    batches = Batches(columns(9), batch_size=2, shuffle=False, rows=np.array([7, 1, 4]))
    assert [batch.rows.tolist() for batch in batches.epoch(0)] == [[7, 1], [4]]
    assert batches.num_videos == 3


@pytest.mark.parametrize("first_batch", [0, 1, 4, 6, 7])
def test_an_epoch_from_a_position_is_the_tail_of_the_whole_one(first_batch):
    batches = Batches(columns(50), batch_size=8, shuffle=True, seed=1)
    whole = list(batches.epoch(4))
    assert len(whole) == 7
    assert_same(batches.epoch(4, first_batch), whole[first_batch:])


def test_batches_stay_valid_after_later_ones_were_asked_for():
    cache = columns(40)
    for batch in list(Batches(cache, batch_size=4, shuffle=True).epoch(0)):
        assert_holds(batch, cache)


def test_a_subset_of_rows_is_shuffled_within_itself():
    rows = sample_rows(60, 0.5, seed=3)
    batches = Batches(columns(60), batch_size=7, shuffle=True, rows=rows)
    seen = np.concatenate([batch.rows.numpy() for batch in batches.epoch(0)])
    assert sorted(seen) == rows.tolist()
    assert seen.tolist() != rows.tolist()


def test_features_keep_their_stored_type():
    cache = columns(4)
    assert next(Batches(cache, batch_size=2, shuffle=False).epoch(0)).features_BD.dtype == torch.float16
    cache.features_ND = cache.features_ND.astype(np.float32)
    assert next(Batches(cache, batch_size=2, shuffle=False).epoch(0)).features_BD.dtype == torch.float32


def test_a_read_only_memory_map_is_used_without_a_copy_or_a_warning(tmp_path):
    cache = columns(20)
    np.save(tmp_path / "features.npy", cache.features_ND)
    cache.features_ND = np.load(tmp_path / "features.npy", mmap_mode="r")
    batches = Batches(cache, batch_size=6, shuffle=True)
    assert batches._features_ND.data_ptr() == cache.features_ND.ctypes.data
    for batch in batches.epoch(0):
        assert_holds(batch, cache)


def test_a_real_cache_is_fed_as_it_is(tmp_path):
    schema = Schema(features={"rgb": 4, "audio": 2}, num_classes=9)
    paths = write_shards(tmp_path, num_videos=30, num_shards=3, num_classes=9, seed=1, features={"rgb": 4, "audio": 2})
    cache = open_cache([str(path) for path in paths], schema, tmp_path / "caches")
    batches = list(Batches(cache, batch_size=8, shuffle=True).epoch(0))
    assert sum(len(batch.rows) for batch in batches) == 30
    for batch in batches:
        assert_holds(batch, cache)


def test_bringing_batches_over_by_a_thread_gives_the_same_batches(monkeypatch):
    """The way of a GPU too small for the features, walked on the CPU."""
    cache = columns(37)
    expected = list(Batches(cache, batch_size=5, shuffle=True).epoch(2))
    monkeypatch.setattr(Batches, "_resident", lambda self: None)
    batches = Batches(cache, batch_size=5, shuffle=True)
    assert_same(batches.epoch(2), expected)
    assert_same(batches.epoch(2, 6), expected[6:])
    assert_same(batches.epoch(2, 8), [])
    next(epoch := batches.epoch(0))
    epoch.close()  # the thread ends with its consumer


def test_no_videos_give_no_batches():
    batches = Batches(columns(0), batch_size=4, shuffle=True)
    assert len(batches) == 0
    assert list(batches.epoch(0)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
        ({"rank": 2, "world_size": 2}, "rank must be in"),
        ({"world_size": 5}, "batch_size must be at least 1 for each of 5 ranks, but got 4"),
        ({"seed": -1}, "seed must not be negative"),
        ({"rows": np.array([0, 9])}, r"rows must be in \[0, 9\), but got 0 to 9"),
        ({"rows": np.array([1, 1])}, "rows must name no video twice"),
        ({"rows": np.array([0.5])}, "rows must be one list of integers, but got float64"),
        ({"rows": np.array([True, False])}, "rows must be one list of integers, but got bool"),
        (
            {"batch_size": 10, "world_size": 10, "drop_last": True},
            "drop_last needs a video for each of 10 ranks, but got 9",
        ),
    ],
)
def test_a_setting_out_of_range_is_named(changes, message):
    settings = {"batch_size": 4, "shuffle": True} | changes
    with pytest.raises(ValueError, match=message):
        Batches(columns(9), **settings)


def test_a_position_out_of_range_is_named():
    batches = Batches(columns(9), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match=r"first_batch must be in \[0, 3\], but got 4"):
        next(batches.epoch(0, 4))
    with pytest.raises(ValueError, match="epoch must not be negative"):
        next(batches.epoch(-1))


@given(st.integers(1, 500), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 5))
def test_smaller_samples_are_part_of_larger_ones(num_videos, small, large, seed):
    small, large = sorted((small, large))
    small_rows, large_rows = sample_rows(num_videos, small, seed), sample_rows(num_videos, large, seed)
    assert set(small_rows) <= set(large_rows)
    assert len(small_rows) == max(1, round(small * num_videos))
    assert (np.diff(small_rows) > 0).all()
    assert 0 <= small_rows[0] <= small_rows[-1] < num_videos


def test_a_sample_of_all_is_all_and_of_none_is_none():
    assert sample_rows(5, 1.0, seed=9).tolist() == [0, 1, 2, 3, 4]
    assert sample_rows(0, 0.5, seed=9).tolist() == []
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], but got 0"):
        sample_rows(5, 0, seed=9)


def test_features_that_become_resident_give_the_same_batches():
    """From the second epoch on, and for the batches of the next trial as well; on a device without memory."""
    cache, meta = columns(37), torch.device("meta")
    residency = Residency(memory=lambda device: Memory(free=1 << 30, reserved=0))
    given = {"batch_size": 5, "shuffle": True, "device": meta, "residency": residency}
    for batches in (Batches(cache, **given), Batches(cache, **given)):
        for _ in range(2):
            shapes = [batch.features_BD.shape for batch in batches.epoch(0)]
            assert shapes == [batch.features_BD.shape for batch in Batches(cache, batch_size=5, shuffle=True).epoch(0)]
            residency.trained(meta)
    assert batches._resident() is residency.copy_of(cache.fingerprint, batches._features_ND, meta) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("residency", [None, Residency(True)], ids=["copied", "resident"])
def test_a_gpu_gets_the_batches_of_a_cpu(residency):
    cache = columns(3000, width=64)
    settings = {"batch_size": 7, "shuffle": True, "seed": 3}
    cuda = Batches(cache, device="cuda", residency=residency, **settings)
    assert_same(cuda.epoch(1), Batches(cache, **settings).epoch(1))
    assert_same(cuda.epoch(1, 300), Batches(cache, **settings).epoch(1, 300))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_copies_on_their_own_stream_end_before_a_batch_is_used():
    """The consumer keeps the GPU busy, and its memory in use, while later batches are copied."""
    cache = columns(2000, width=4096)
    batches = Batches(cache, batch_size=100, shuffle=True, device="cuda")
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in batches.epoch(0):
        busy = busy @ busy / 4096
        sums.append(batch.features_BD.double().sum())
        del batch
    expected = [batch.features_BD.double().sum() for batch in Batches(cache, batch_size=100, shuffle=True).epoch(0)]
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said once by torch
@pytest.mark.parametrize("wanted", [True, False])
def test_resident_features_are_shared_and_no_batch_waits_for_the_gpu(wanted):
    cache, residency = columns(3000, width=64), Residency(wanted)
    train = Batches(cache, batch_size=16, shuffle=True, device="cuda", residency=residency)
    scored = Batches(cache, batch_size=16, shuffle=False, rows=np.arange(50), device="cuda:0", residency=residency)
    assert train._resident() is scored._resident()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in train.epoch(0):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
