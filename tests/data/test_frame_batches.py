"""Batches of frames: which frames, where they stand, what is padding; the same after a resume and on every rank."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import Batches
from data.residency import Residency
from data.sampling import FramesConfig, uniforms

SAMPLINGS = ("all", "uniform", "random", "sequence")


def columns(num_videos=12, longest=9, seed=0, rated=False):
    """A cache-shaped object of frames: the bytes of a frame are its number in the cache, its video, and 255."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, num_videos)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    frames_FD = np.full((offsets[-1], 3), 255, np.uint8)
    frames_FD[:, 0] = np.arange(offsets[-1])
    frames_FD[:, 1] = np.repeat(np.arange(num_videos), lengths)
    labels = rng.integers(1, 4, num_videos)
    return SimpleNamespace(
        fingerprint=f"{num_videos}-{seed}",
        features_ND=frames_FD,
        frame_offsets=offsets,
        label_offsets=np.concatenate([[0], np.cumsum(labels)]),
        label_indices=rng.integers(0, 11, labels.sum()).astype(np.int32),
        rated_offsets=np.arange(num_videos + 1) * 2 if rated else None,
        rated_indices=rng.integers(0, 11, num_videos * 2).astype(np.int32) if rated else None,
        stream=None,
        parts=None,
    )


def frames_of(batch):
    """The frames' numbers in the cache, of each video; checks that all else is padding."""
    frames_BTD, mask_BT = batch.inputs
    assert frames_BTD.dtype == torch.uint8 and mask_BT.dtype == torch.bool
    assert not frames_BTD[~mask_BT].any() and (frames_BTD[mask_BT][:, 2] == 255).all()
    assert mask_BT.any(dim=0).all()  # as long as the longest video of the batch, and no longer
    assert (mask_BT.long().diff(dim=1) <= 0).all()  # frames first, then padding
    assert torch.equal(frames_BTD[:, :, 1][mask_BT], batch.rows[mask_BT.nonzero()[:, 0]].to(torch.uint8))
    return [frames_BTD[b, mask_BT[b], 0].tolist() for b in range(len(frames_BTD))]


@settings(deadline=None)
@given(
    sampling=st.sampled_from(SAMPLINGS),
    count=st.integers(1, 12),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_every_video_comes_once_with_frames_of_its_own(sampling, count, batch_size, seed):
    cache = columns()
    config = FramesConfig(sampling=sampling, count=count)
    seen = []
    for batch in Batches(cache, batch_size=batch_size, shuffle=True, seed=seed, frames=config).epoch(1):
        for row, frames in zip(batch.rows.tolist(), frames_of(batch), strict=True):
            begin, end = cache.frame_offsets[row : row + 2].tolist()
            assert all(begin <= frame < end for frame in frames)
            if sampling == "all":
                assert frames == list(range(begin, end))
            elif sampling == "random":
                assert len(frames) == count
            else:
                assert len(frames) == min(count, end - begin)
            if sampling == "sequence":
                assert frames == list(range(frames[0], frames[0] + len(frames)))
            if sampling == "uniform":
                assert frames == sorted(set(frames))
                assert len(frames) < 2 or np.ptp(np.diff(frames)) <= 1
            seen.append(row)
    assert sorted(seen) == list(range(12))


def test_uniform_frames_are_the_middles_of_equal_parts():
    frames, mask = FramesConfig(sampling="uniform", count=3).select(np.array([9, 2]), np.array([0, 1]), 0, 0)
    assert frames.tolist() == [[1, 4, 7], [0, 1, 0]]
    assert mask.tolist() == [[True] * 3, [True, True, False]]


def test_a_sequence_starts_anywhere_that_it_fits_and_repeats_no_frame():
    """Published code repeats the last frame of a video that is shorter: here it is padding."""
    rows = np.arange(4000)
    frames, mask = FramesConfig(sampling="sequence", count=3).select(np.full(4000, 5), rows, 0, 0)
    starts, counts = np.unique(frames[:, 0], return_counts=True)
    assert starts.tolist() == [0, 1, 2] and mask.all()
    assert counts.min() > 4000 / 3 * 0.9
    frames, mask = FramesConfig(sampling="sequence", count=3).select(np.array([2, 5]), rows[:2], 0, 0)
    assert frames[0].tolist() == [0, 1, 0] and mask[0].tolist() == [True, True, False]


def test_random_frames_are_drawn_from_all_with_replacement():
    frames, mask = FramesConfig(sampling="random", count=50).select(np.full(200, 4), np.arange(200), 0, 0)
    _, counts = np.unique(frames, return_counts=True)
    assert len(counts) == 4 and mask.all()
    assert abs(counts / counts.sum() - 0.25).max() < 0.02


def test_uniforms_are_uniform_and_differ_with_seed_epoch_row_and_draw():
    u = uniforms(1, 2, np.arange(300)[:, None], np.arange(300))
    assert u.min() >= 0 and u.max() < 1 and len(np.unique(u)) == u.size
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01
    assert not np.intersect1d(u, uniforms(1, 3, np.arange(300)[:, None], np.arange(300))).size
    assert not np.intersect1d(u, uniforms(2, 2, np.arange(300)[:, None], np.arange(300))).size


def test_draws_are_those_of_earlier_versions():
    """A resumed training must see the frames that it would have seen: changing this breaks every resume."""
    np.testing.assert_allclose(
        uniforms(1, 0, np.array([0, 1]), 0), [0.8392816792059956, 0.7488129101137516], rtol=0, atol=0
    )


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_epoch_from_a_position_and_a_threads_batches_are_the_same(sampling, monkeypatch):
    cache, config = columns(), FramesConfig(sampling=sampling, count=4)
    whole = list(Batches(cache, batch_size=5, shuffle=True, seed=3, frames=config).epoch(2))
    tail = list(Batches(cache, batch_size=5, shuffle=True, seed=3, frames=config).epoch(2, 1))
    monkeypatch.setattr(Batches, "_resident", lambda self: None)  # a GPU too small for the frames
    brought = list(Batches(cache, batch_size=5, shuffle=True, seed=3, frames=config).epoch(2))
    for expected, batch in [*zip(whole[1:], tail, strict=True), *zip(whole, brought, strict=True)]:
        assert all(torch.equal(a, b) for a, b in zip(expected.inputs, batch.inputs, strict=True))
        assert torch.equal(expected.label_indices, batch.label_indices)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_ranks_see_of_every_video_the_frames_that_one_process_sees(sampling):
    cache, given = columns(), {"batch_size": 6, "shuffle": True, "frames": FramesConfig(sampling=sampling, count=3)}
    alone = {}
    for batch in Batches(cache, **given).epoch(0):
        alone |= dict(zip(batch.rows.tolist(), frames_of(batch), strict=True))
    for rank in range(2):
        for batch in Batches(cache, rank=rank, world_size=2, **given).epoch(0):
            for row, frames in zip(batch.rows.tolist(), frames_of(batch), strict=True):
                assert alone.pop(row) == frames
    assert not alone


def test_epochs_draw_other_frames_and_evaluation_always_sees_the_same():
    cache = columns(longest=60)
    drawn = Batches(cache, batch_size=12, shuffle=False, frames=FramesConfig(sampling="random", count=5))
    assert frames_of(next(drawn.epoch(0))) != frames_of(next(drawn.epoch(1)))
    scored = Batches(cache, batch_size=12, shuffle=False)
    assert frames_of(next(scored.epoch(0))) == frames_of(next(scored.epoch(1)))


def test_rated_classes_come_with_their_examples(monkeypatch):
    cache = columns(rated=True)
    monkeypatch.setattr("data.batches._BATCHES_PER_WINDOW", 2)
    for batch in Batches(cache, batch_size=5, shuffle=True).epoch(0):
        for b, row in enumerate(batch.rows.tolist()):
            begin, end = batch.rated_offsets[b : b + 2].tolist()
            assert batch.rated_indices[begin:end].tolist() == cache.rated_indices[2 * row : 2 * row + 2].tolist()
    assert next(Batches(columns(), batch_size=5, shuffle=True).epoch(0)).rated_offsets is None


def test_a_count_of_no_frame_is_refused():
    with pytest.raises(ValueError, match="count must be from 1 to 16,777,216, but got 0"):
        FramesConfig(count=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("residency", [None, Residency(True)], ids=["copied", "resident"])
def test_a_gpu_gets_the_frames_of_a_cpu(residency):
    cache, given = columns(300), {"batch_size": 7, "shuffle": True, "frames": FramesConfig(sampling="random", count=4)}
    on_gpu = Batches(cache, device="cuda", residency=residency, **given).epoch(1)
    for ours, expected in zip(on_gpu, Batches(cache, **given).epoch(1), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours.inputs, expected.inputs, strict=True))
