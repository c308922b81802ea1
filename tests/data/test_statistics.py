"""Statistics: against numpy in one piece, on any split into chunks."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.cache.statistics import ByteMoments, Totals, keep_totals, kept_statistics, kept_totals, statistics_of
from data.schema import DEQUANTISE_SCALE, DEQUANTISE_SHIFT

features = arrays(
    np.float16,
    st.tuples(st.integers(0, 12), st.integers(1, 4)),
    elements=st.floats(-1000, 1000, width=16),
)
NO_LABELS = np.empty(0, np.int32)


def moments(features_ND, label_indices=NO_LABELS, num_classes=5):
    return Totals.of(
        features_ND,
        num_videos=len(features_ND),
        label_indices=label_indices,
        rated_indices=None,
        num_classes=num_classes,
    )


def no_moments(width):
    return moments(np.empty((0, width), np.float16))


@given(features, st.lists(st.integers(0, 12), max_size=4))
def test_any_split_merges_to_numpys_mean_and_variance(features_ND, cuts):
    merged = no_moments(features_ND.shape[1])
    for chunk_ND in np.split(features_ND, sorted(min(cut, len(features_ND)) for cut in cuts)):
        merged = merged.merge(moments(chunk_ND))
    statistics = merged.statistics()
    assert statistics.num_videos == len(features_ND)
    if len(features_ND):
        wide_ND = features_ND.astype(np.float64)
        np.testing.assert_allclose(merged.moments.mean_D, wide_ND.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(statistics.mean_D, wide_ND.mean(axis=0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(statistics.variance_D, wide_ND.var(axis=0), rtol=1e-6, atol=1e-9)


@given(features, features)
def test_merging_in_either_order_agrees(a_ND, b_ND):
    width = min(a_ND.shape[1], b_ND.shape[1])
    a, b = moments(a_ND[:, :width]), moments(b_ND[:, :width])
    np.testing.assert_allclose(a.merge(b).moments.mean_D, b.merge(a).moments.mean_D, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.merge(b).moments.squares_D, b.merge(a).moments.squares_D, rtol=1e-9, atol=1e-9)


@given(st.floats(-60000, 60000, width=16), st.integers(1, 50), st.integers(1, 50))
def test_a_constant_column_has_variance_zero_exactly(value, num_a, num_b):
    constant = np.full((num_a + num_b, 1), value, np.float16)
    statistics = moments(constant[:num_a]).merge(moments(constant[num_a:])).statistics()
    assert statistics.variance_D[0] == 0
    assert statistics.mean_D[0] == np.float32(value)


def test_the_variance_is_the_populations():
    statistics = moments(np.array([[0.0], [2.0]], np.float32)).statistics()
    assert statistics.variance_D[0] == 1  # (1 + 1) / 2; the corrected one would be 2


def test_a_large_mean_costs_no_precision():
    values = 30000 + np.arange(4096, dtype=np.float32).reshape(-1, 1) % 2
    assert moments(values).merge(moments(values)).statistics().variance_D[0] == pytest.approx(0.25, rel=1e-6)


def test_merging_with_nothing_changes_not_one_bit():
    some = moments(np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32))
    nothing = no_moments(3)
    for merged in (some.merge(nothing), nothing.merge(some)):
        assert merged.num_videos == some.num_videos
        np.testing.assert_array_equal(merged.moments.mean_D, some.moments.mean_D)
        np.testing.assert_array_equal(merged.moments.squares_D, some.moments.squares_D)


def test_no_videos_have_mean_and_variance_zero():
    statistics = no_moments(2).statistics()
    assert statistics.num_videos == 0
    assert statistics.mean_D.tolist() == statistics.variance_D.tolist() == [0, 0]


def test_label_counts_add_up():
    a = moments(np.zeros((2, 1), np.float16), np.array([0, 3, 3], np.int32))
    b = moments(np.zeros((1, 1), np.float16), np.array([4], np.int32))
    assert a.merge(b).statistics().label_counts_C.tolist() == [1, 0, 0, 2, 1]


def test_columns_longer_than_a_chunk_are_read_whole():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 4, 1300)
    columns = SimpleNamespace(
        features_ND=rng.normal(size=(1300, 3)).astype(np.float16),
        label_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        label_indices=rng.integers(0, 7, lengths.sum()).astype(np.int32),
        rated_indices=None,
    )
    statistics = statistics_of(columns, 7)
    assert statistics.num_videos == 1300
    np.testing.assert_allclose(statistics.variance_D, columns.features_ND.astype(np.float64).var(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(statistics.label_counts_C, np.bincount(columns.label_indices, minlength=7))


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 600), st.integers(1, 3)), elements=st.sampled_from([0, 1, 254, 255])),
    st.lists(st.integers(0, 600), max_size=3),
)
def test_sums_of_frames_are_exact_for_any_split(frames_FD, cuts):
    parts = np.split(frames_FD, sorted(min(cut, len(frames_FD)) for cut in cuts))
    merged = ByteMoments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(ByteMoments.of(part))
    wide_FD = frames_FD.astype(np.int64)
    assert merged.sum_D.tolist() == wide_FD.sum(axis=0).tolist()
    assert merged.squares_D.tolist() == (wide_FD**2).sum(axis=0).tolist()
    mean_D, variance_D = merged.mean_and_variance()
    real_FD = wide_FD * DEQUANTISE_SCALE + DEQUANTISE_SHIFT
    np.testing.assert_allclose(mean_D, real_FD.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(variance_D, real_FD.var(axis=0), rtol=1e-10, atol=1e-12)


def test_a_block_of_the_largest_bytes_is_still_summed_exactly():
    sums = ByteMoments.of(np.full((1000, 2), 255, np.uint8))
    assert sums.squares_D.tolist() == [1000 * 255**2] * 2
    assert sums.mean_and_variance()[1].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
@pytest.mark.parametrize("rated", [None, np.array([0, 1, 1], np.int32)])
def test_totals_are_kept_to_the_last_bit(tmp_path, dtype, rated):
    rows = np.random.default_rng(3).integers(0, 200, (5, 2)).astype(dtype)
    labels = np.array([1, 1], np.int32)
    totals = Totals.of(rows, num_videos=5, label_indices=labels, rated_indices=rated, num_classes=3)
    path = tmp_path / "statistics.npz"
    keep_totals(path, totals)
    kept = kept_totals(path, rated is not None)
    assert type(kept.moments) is type(totals.moments) and kept.num_videos == 5
    for name in ("num_rows", "squares_D"):
        np.testing.assert_array_equal(getattr(kept.moments, name), getattr(totals.moments, name))
    np.testing.assert_array_equal(kept.statistics().mean_D, totals.statistics().mean_D)
    np.testing.assert_array_equal(kept.label_counts_C, [0, 2, 0])
    assert (kept.rated_counts_C is None) == (rated is None)
    np.testing.assert_array_equal(kept_statistics(path, rated is not None).variance_D, totals.statistics().variance_D)


def test_what_an_earlier_version_kept_has_no_totals(tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, num_videos=2, mean_D=np.ones(3), variance_D=np.ones(3), label_counts_C=np.array([1, 1]))
    assert kept_statistics(path, rated=False).num_videos == 2
    assert kept_totals(path, rated=False) is None
