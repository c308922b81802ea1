"""Metrics of each class against scikit-learn; MAP@K against a worked example."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from models.metrics import mean_average_precision
from models.metrics.per_class import PerClass
from models.metrics.segments import map_at_k

SCORES = np.array([[0.9, 0.8, 0.1, 0.2, 0.05], [0.3, 0.7, 0.6, 0.4, 0.02], [0.55, 0.15, 0.25, 0.35, 0.95]])
LABELS = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]])


def sparse(cells):
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(cells, axis=1))])
    return torch.tensor(offsets), torch.tensor(np.nonzero(cells)[1])


def computed(scores, labels, rated=None, cut=0):
    kept = PerClass(scores.shape[1])
    for part in (slice(0, cut), slice(cut, None)):
        mask = {} if rated is None else dict(zip(("rated_offsets", "rated_indices"), sparse(rated[part]), strict=True))
        other = PerClass(scores.shape[1])
        other.update(torch.tensor(scores[part]), *sparse(labels[part]), **mask)
        kept.merge(other)
    return kept.compute()


def test_classes_of_the_published_example():
    logits = np.log(SCORES / (1 - SCORES))
    found = computed(logits, LABELS)
    assert found.average_precision_C[:4].tolist() == pytest.approx([1, 0.5, 0.8333333, 0.5], abs=1e-7)
    assert np.isnan(found.average_precision_C[4])  # without positives: left out, not 0
    assert found.mean_average_precision == pytest.approx(0.7083333, abs=1e-7)
    assert found.positives_C.tolist() == [2, 1, 2, 1, 0] and found.rated_C.tolist() == [3] * 5
    assert found.mean_probability_C == pytest.approx(SCORES.mean(axis=0))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_average_precision_is_scikit_learns(seed, cut):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(30, 6)).astype(np.float32), rng.random((30, 6)) < 0.2
    labels[0] = True
    found = computed(scores, labels, cut=cut)
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(6)]
    assert found.average_precision_C == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_class_is_ranked_among_the_videos_that_are_rated_for_it(seed):
    rng = np.random.default_rng(seed)
    scores, rated = rng.normal(size=(30, 6)).astype(np.float32), rng.random((30, 6)) < 0.5
    labels = rated & (rng.random((30, 6)) < 0.4)
    found = computed(scores, labels, rated, cut=7)
    for c in range(6):
        own = rated[:, c]
        assert found.rated_C[c] == own.sum()
        if labels[:, c].any():
            expected = average_precision_score(labels[own, c], scores[own, c])
            assert found.average_precision_C[c] == pytest.approx(expected)


def test_a_class_beyond_a_videos_best_is_ranked_here_and_not_in_the_published_pool():
    """Class 1 ranks its videos perfectly, but is not the best class of any."""
    scores, labels = np.array([[9.0, 3.0], [8.0, 2.0]]), np.array([[1, 1], [0, 0]])
    assert computed(scores, labels).mean_average_precision == 1.0
    assert mean_average_precision(scores, labels, top_k=1) == 0.5


def test_nothing_positive_is_a_map_of_0():
    assert computed(SCORES, np.zeros_like(LABELS)).mean_average_precision == 0.0


class TestMapAtK:
    """The metric of 2019, and the errors of the source's script."""

    RANKED = tuple(f"v:{start}" for start in (0, 5, 10, 15, 20))
    RATED = dict(zip(RANKED, (True, False, True, False, False), strict=True)) | {"w:0": True}

    def test_the_published_example(self):
        assert map_at_k({7: self.RANKED}, {7: self.RATED}) == pytest.approx(0.5555556, abs=1e-7)

    def test_segments_that_are_not_rated_are_passed_over(self):
        with_others = ("x:0", *self.RANKED[:2], "x:5", *self.RANKED[2:])
        assert map_at_k({7: with_others}, {7: self.RATED}) == pytest.approx(0.5555556, abs=1e-7)

    def test_the_list_is_cut_before_they_are_passed_over(self):
        assert map_at_k({7: ("x:0", *self.RANKED)}, {7: self.RATED}, k=3) == pytest.approx(1 / 3)

    def test_a_class_without_positives_is_left_out_and_no_error(self):
        assert map_at_k({7: self.RANKED}, {7: self.RATED, 8: {"v:0": False}}) == pytest.approx(5 / 9)

    def test_a_class_that_nobody_rated_does_not_count(self):
        assert map_at_k({7: self.RANKED, 9: self.RANKED}, {7: self.RATED}) == pytest.approx(5 / 9)

    def test_a_class_that_was_not_submitted_counts_0(self):
        assert map_at_k({7: self.RANKED}, {7: self.RATED, 8: {"v:0": True}}) == pytest.approx(5 / 18)

    def test_a_segment_that_is_listed_twice_counts_once(self):
        twice = ("v:0", "v:0", *self.RANKED[1:])
        assert map_at_k({7: twice}, {7: self.RATED}) == pytest.approx(5 / 9)

    def test_without_a_positive_it_is_0(self):
        assert map_at_k({}, {}) == 0.0
