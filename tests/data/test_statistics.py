"""Statistics: against numpy in one piece, on any split into chunks."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.cache.statistics import Moments

features = arrays(
    np.float16,
    st.tuples(st.integers(0, 12), st.integers(1, 4)),
    elements=st.floats(-1000, 1000, width=16),
)
NO_LABELS = np.empty(0, np.int32)


def moments(features_ND, label_indices=NO_LABELS, num_classes=5):
    return Moments.of(features_ND, label_indices, num_classes)


@given(features, st.lists(st.integers(0, 12), max_size=4))
def test_any_split_merges_to_numpys_mean_and_variance(features_ND, cuts):
    merged = Moments.empty(features_ND.shape[1], 5)
    for chunk_ND in np.split(features_ND, sorted(min(cut, len(features_ND)) for cut in cuts)):
        merged = merged.merge(moments(chunk_ND))
    statistics = merged.statistics()
    assert statistics.num_videos == len(features_ND)
    if len(features_ND):
        wide_ND = features_ND.astype(np.float64)
        np.testing.assert_allclose(merged.mean_D, wide_ND.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(statistics.mean_D, wide_ND.mean(axis=0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(statistics.variance_D, wide_ND.var(axis=0), rtol=1e-6, atol=1e-9)


@given(features, features)
def test_merging_in_either_order_agrees(a_ND, b_ND):
    width = min(a_ND.shape[1], b_ND.shape[1])
    a, b = moments(a_ND[:, :width]), moments(b_ND[:, :width])
    np.testing.assert_allclose(a.merge(b).mean_D, b.merge(a).mean_D, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.merge(b).squares_D, b.merge(a).squares_D, rtol=1e-9, atol=1e-9)


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
    nothing = Moments.empty(3, 5)
    for merged in (some.merge(nothing), nothing.merge(some)):
        assert merged.num_videos == some.num_videos
        np.testing.assert_array_equal(merged.mean_D, some.mean_D)
        np.testing.assert_array_equal(merged.squares_D, some.squares_D)


def test_no_videos_have_mean_and_variance_zero():
    statistics = Moments.empty(2, 3).statistics()
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
    )
    statistics = Moments.of_columns(columns, 7).statistics()
    assert statistics.num_videos == 1300
    np.testing.assert_allclose(statistics.variance_D, columns.features_ND.astype(np.float64).var(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(statistics.label_counts_C, np.bincount(columns.label_indices, minlength=7))
