"""The metrics against their definitions by counting and known values, and what the accumulator guarantees."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import metrics
from models.metrics import Accumulator, calibration
from models.metrics.ranking import descending
from models.metrics.top_classes import rank_by_candidates, rank_by_sorting, top_classes

# The example of the known values below.
SCORES = np.array([[0.9, 0.8, 0.1, 0.2, 0.05], [0.3, 0.7, 0.6, 0.4, 0.02], [0.55, 0.15, 0.25, 0.35, 0.95]])
LABELS = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]])
LOGITS = np.log(SCORES / (1 - SCORES))


def sparse(labels_NC):
    """Offsets and indices of dense labels."""
    rows, classes = np.nonzero(labels_NC)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(labels_NC)))])
    return torch.tensor(offsets), torch.tensor(classes)


def accumulate(logits_NC, labels_NC, top_k=20, cuts=()):
    accumulator = Accumulator(logits_NC.shape[1], top_k)
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(logits_NC)]):
        accumulator.update(torch.tensor(logits_NC[start:stop]), *sparse(labels_NC[start:stop]))
    return accumulator


# The definitions, by counting


def ranking(scores_C):
    return sorted(range(len(scores_C)), key=lambda c: (-scores_C[c], c))


def pool(scores_NC, labels_NC, top_k):
    """(class, hit) of every video's top_k, by score, then video, then class."""
    triples = [
        (-scores[c], video, c, bool(labels[c]))
        for video, (scores, labels) in enumerate(zip(scores_NC, labels_NC, strict=True))
        for c in ranking(scores)[:top_k]
    ]
    return [(c, hit) for _, _, c, hit in sorted(triples)]


def average_precision(hits, num_positives):
    return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / num_positives


def defined(logits_NC, labels_NC, top_k):
    num_videos = len(labels_NC)
    ranked = pool(logits_NC, labels_NC, top_k)
    positives = labels_NC.sum()
    classes = [c for c in range(labels_NC.shape[1]) if labels_NC[:, c].any()]
    per_class = [average_precision([hit for k, hit in ranked if k == c], labels_NC[:, c].sum()) for c in classes]
    perrs = [
        sum(labels[c] for c in ranking(scores)[: labels.sum()]) / labels.sum() if labels.any() else 0.0
        for scores, labels in zip(logits_NC, labels_NC, strict=True)
    ]
    predicted = logits_NC > 0
    probabilities = 1 / (1 + np.exp(-logits_NC.astype(np.float64)))
    cells = np.where(labels_NC, -np.log(probabilities), -np.log1p(-probabilities))
    return {
        "gap": average_precision([hit for _, hit in ranked], positives) if positives else 0.0,
        "hit_at_1": sum(labels[ranking(s)[0]] for s, labels in zip(logits_NC, labels_NC, strict=True)) / num_videos,
        "perr": sum(perrs) / num_videos,
        "map": sum(per_class) / len(per_class) if per_class else 0.0,
        "average_num_classes": predicted.sum() / num_videos,
        "precision": (predicted & (labels_NC > 0)).sum() / predicted.sum() if predicted.any() else 0.0,
        "recall": (predicted & (labels_NC > 0)).sum() / positives if positives else 0.0,
        "loss": cells.sum() / num_videos,
        "calibration_error": calibration_error(logits_NC, labels_NC, top_k),
        "num_videos": num_videos,
    }


def calibration_error(logits_NC, labels_NC, top_k):
    bins = [[] for _ in range(15)]
    for logits, labels in zip(logits_NC, labels_NC, strict=True):
        for c in ranking(logits)[:top_k]:
            probability = 1 / (1 + np.exp(-np.float64(logits[c])))
            if logits[c] > -400:  # a lower logit stands for a class that is not rated
                bins[min(int(probability * 15), 14)].append((probability, labels[c]))
    total = sum(map(len, bins))
    errors = [len(cells) / total * abs(np.subtract(*np.mean(cells, axis=0))) for cells in bins if cells]
    return sum(errors)


@st.composite
def problems(draw):
    """Logits with or without ties, from no label to more than top_k for a video, few classes or enough for groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_videos, num_classes = draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 5, 17, 130, 300]))
    top_k = draw(st.integers(1, 25))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    logits = rng.normal(-1, 3, (num_videos, num_classes))
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    labels = rng.random((num_videos, num_classes)) < rng.choice([0.0, 0.02, 0.3, 0.9], (num_videos, 1))
    return logits.astype(dtype), labels.astype(np.int64), top_k


@settings(deadline=None)
@given(problems())
def test_every_metric_equals_its_definition_by_counting(problem):
    logits, labels, top_k = problem
    expected = defined(logits, labels, top_k)
    expected["loss"] = pytest.approx(expected["loss"], rel=1e-5, abs=1e-5)  # a float32 sum, in which small terms cancel
    found = accumulate(logits, labels, top_k).compute()
    assert found.keys() == expected.keys()
    assert found.pop("loss") == expected.pop("loss")
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


@settings(deadline=None)
@given(problems())
def test_the_dense_functions_equal_the_definitions(problem):
    logits, labels, top_k = problem
    expected = defined(logits, labels, top_k)
    assert metrics.gap(logits, labels, top_k) == pytest.approx(expected["gap"], abs=1e-9)
    assert metrics.mean_average_precision(logits, labels, top_k) == pytest.approx(expected["map"], abs=1e-9)
    assert metrics.hit_at_1(torch.tensor(logits), labels > 0) == pytest.approx(expected["hit_at_1"], abs=1e-9)
    assert metrics.perr(torch.tensor(logits), torch.tensor(labels)) == pytest.approx(expected["perr"], abs=1e-9)


@settings(deadline=None)
@given(problems(), st.lists(st.integers(0, 12), max_size=3))
def test_cutting_into_batches_and_merging_in_order_change_nothing(problem, cuts):
    logits, labels, top_k = problem
    whole = accumulate(logits, labels, top_k).compute()
    whole["loss"] = pytest.approx(whole["loss"], rel=1e-6)  # rounding depends on the place in the batch
    whole["calibration_error"] = pytest.approx(whole["calibration_error"], abs=1e-12)
    cuts = [min(cut, len(logits)) for cut in cuts]
    assert accumulate(logits, labels, top_k, cuts).compute() == whole
    merged = Accumulator(logits.shape[1], top_k)
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(logits)]):
        merged.merge(accumulate(logits[start:stop], labels[start:stop], top_k))
    assert merged.compute() == whole


def test_without_ties_the_order_of_merging_does_not_matter():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 40)), (rng.random((60, 40)) < 0.1).astype(np.int64)
    parts = [slice(0, 10), slice(10, 45), slice(45, 60)]
    results = []
    for order in itertools.permutations(parts):
        merged = Accumulator(40)
        for part in order:
            merged.merge(accumulate(logits[part], labels[part]))
        results.append(merged.compute())
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-12)


def test_merging_leaves_the_other_accumulator_as_it_was():
    first, second = accumulate(LOGITS[:1], LABELS[:1]), accumulate(LOGITS[1:], LABELS[1:])
    before = second.compute()
    first.merge(second)
    first.update(torch.tensor(LOGITS), *sparse(LABELS))
    assert second.compute() == before


def test_state_travels_as_arrays_and_comes_back_the_same():
    accumulator = accumulate(LOGITS, LABELS, cuts=[1])
    state = accumulator.state_dict()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    assert Accumulator.from_state(state).compute() == accumulator.compute()


def test_an_accumulator_that_saw_nothing_travels_and_merges():
    empty = Accumulator.from_state(Accumulator(5).state_dict())
    empty.merge(accumulate(LOGITS, LABELS))
    assert empty.compute() == accumulate(LOGITS, LABELS).compute()


@settings(deadline=None)
@given(problems())
def test_both_ways_of_ranking_agree(problem):
    """The ranking for CUDA, which reads no value on the host, against the ranking for a CPU."""
    logits, labels, top_k = problem
    top_k = min(top_k, logits.shape[1])
    arguments = torch.tensor(logits), torch.tensor(labels > 0), torch.tensor(labels.sum(1)), top_k
    pairs = zip(rank_by_sorting(*arguments), rank_by_candidates(*arguments), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@settings(deadline=None)
@given(problems())
def test_rank_metrics_from_logits_equal_those_from_probabilities(problem):
    logits, labels, top_k = problem
    logits = np.round(logits.astype(np.float64), 2)  # so far apart that the sigmoid keeps them different
    probabilities = 1 / (1 + np.exp(-logits))
    for metric in (metrics.hit_at_1, metrics.perr):
        assert metric(probabilities, labels) == metric(logits, labels)
    for metric in (metrics.gap, metrics.mean_average_precision):
        assert metric(probabilities, labels, top_k) == metric(logits, labels, top_k)


# Known values of the example


@pytest.mark.parametrize(("top_k", "expected"), [(20, 0.5588675), (5, 0.5588675), (2, 0.3777778), (1, 0.1944444)])
def test_gap_of_the_published_example(top_k, expected):
    assert metrics.gap(SCORES, LABELS, top_k) == pytest.approx(expected, abs=1e-7)


def test_gap_counts_the_positives_outside_the_top_k_as_missed():
    """Division by the number of positives in the top 2 would give 0.5666667."""
    assert metrics.gap(SCORES, LABELS, 2) * 6 / 4 == pytest.approx(0.5666667, abs=1e-7)


@pytest.mark.parametrize(("top_k", "expected"), [(20, 0.7083333), (5, 0.7083333), (2, 0.5)])
def test_map_of_the_published_example(top_k, expected):
    assert metrics.mean_average_precision(SCORES, LABELS, top_k) == pytest.approx(expected, abs=1e-7)


def test_the_accumulator_on_the_published_example():
    found = accumulate(LOGITS, LABELS).compute()
    del found["calibration_error"]  # not in the sources
    assert found == pytest.approx(
        {
            "gap": 0.5588675,
            "hit_at_1": 0.6666667,
            "perr": 0.6666667,
            "map": 0.7083333,
            "average_num_classes": 2.0,
            "precision": 0.6666667,
            "recall": 0.6666667,
            "loss": 3.7135389,
            "num_videos": 3,
        },
        abs=1e-7,
    )


def test_calibration_error_of_an_example():
    """Two of 15 bins: 0.72 and 0.68 with one hit, 0.05 and 0.03 with none; a class that is not rated is in no bin."""
    probabilities = np.array([[0.72, 0.05, 0.0], [0.68, 0.03, 0.0]])
    hits = np.array([[True, False, False], [False, False, False]])
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities / (1 - probabilities))
    assert calibration.calibration_error(logits, hits) == pytest.approx((abs(0.72 + 0.68 - 1) + 0.08) / 4)


def test_gap_at_several_k_from_one_accumulator():
    found = accumulate(LOGITS, LABELS).compute(gap_at=(1, 2, 5))
    expected = {"gap_at_1": 0.1944444, "gap_at_2": 0.3777778, "gap_at_5": 0.5588675}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-7)


@settings(deadline=None)
@given(problems(), st.integers(1, 25))
def test_gap_at_k_is_that_of_an_accumulator_of_k(problem, k):
    logits, labels, top_k = problem
    k = min(k, top_k, logits.shape[1])
    assert (
        accumulate(logits, labels, top_k).compute([k])[f"gap_at_{k}"] == accumulate(logits, labels, k).compute()["gap"]
    )


def test_gap_beyond_the_predictions_that_are_kept_is_refused():
    with pytest.raises(ValueError, match=r"gap_at must be in \[1, 3\], the predictions that are kept, but got 4"):
        accumulate(LOGITS, LABELS, top_k=3).compute(gap_at=[4])


def test_probabilities_that_come_true_are_calibrated():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.02, 0.98, (20_000, 1))
    labels = (rng.random((20_000, 1)) < probabilities).astype(np.int64)
    logits = np.log(probabilities / (1 - probabilities))
    assert accumulate(logits, labels).compute()["calibration_error"] < 0.02
    assert accumulate(3 * logits, labels).compute()["calibration_error"] > 0.1  # far too confident


def test_scoring_draws_no_random_numbers():
    """The source shuffles ties, and seeds Python's generator with 0 for it at every call."""
    before = random.getstate(), torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    accumulate(np.zeros((3, 30)), np.eye(3, 30, dtype=np.int64)).compute()
    assert random.getstate() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]


def test_a_video_without_labels_scores_zero_and_counts():
    labels = LABELS.copy()
    labels[1] = 0
    found = accumulate(LOGITS, labels).compute()
    expected = {"gap": 0.3790064, "hit_at_1": 0.3333333, "perr": 0.3333333, "map": 0.6111111}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-7)


# Classes that are not rated


def given_rated(rated_NC):
    """The mask as arguments of the accumulator."""
    return dict(zip(("rated_offsets", "rated_indices"), sparse(rated_NC), strict=True))


@settings(deadline=None)
@given(problems())
def test_only_rated_cells_are_ranked_and_counted(problem):
    """The definitions, with classes that are not rated ranked last and without their losses."""
    logits, labels, top_k = problem
    rated = np.random.default_rng(len(logits)).random(labels.shape) < 0.4
    labels = labels & rated
    accumulator = Accumulator(logits.shape[1], top_k)
    accumulator.update(torch.tensor(logits), *sparse(labels), **given_rated(rated))
    hidden = np.where(rated, logits, -500.0)
    expected = defined(hidden, labels, top_k)
    cells = np.logaddexp(0, np.where(labels, -logits, logits).astype(np.float64))
    found = accumulator.compute()
    del expected["loss"]
    assert found.pop("loss") == pytest.approx((cells * rated).sum() / len(logits), rel=1e-5, abs=1e-5)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_a_class_that_is_not_rated_does_not_count_as_a_miss():
    """In google/youtube-8m's eval.py the loss ignores the weights, and zeros stay in the pool as predictions."""
    rated = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 1, 0]])
    accumulator = Accumulator(5)
    accumulator.update(torch.tensor(LOGITS), *sparse(LABELS), **given_rated(rated))
    found = accumulator.compute()
    # Rated cells by score: .9 + | .7 + | .6 + | .55 + | .4 - | .35 + | .1 +
    assert found["gap"] == pytest.approx((1 + 1 + 1 + 1 + 5 / 6 + 6 / 7) / 6)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.6, 0.6, 0.55, 0.35]).sum() / 3)
    assert found["average_num_classes"] == pytest.approx(4 / 3) and found["precision"] == 1


# Ties, videos without labels, and numbers that are not finite


def test_ties_fall_to_the_earlier_video_then_to_the_lower_class():
    logits = np.zeros((2, 4))
    assert metrics.gap(logits, [[1, 0, 0, 0], [0, 0, 0, 0]], 2) == 1.0
    assert metrics.gap(logits, [[0, 1, 0, 0], [0, 0, 0, 0]], 2) == 0.5
    assert metrics.gap(logits, [[0, 0, 0, 0], [1, 0, 0, 0]], 2) == pytest.approx(1 / 3)
    assert metrics.gap(logits, [[0, 0, 1, 0], [0, 0, 0, 1]], 2) == 0.0


def test_equal_logits_everywhere_rank_the_lowest_classes():
    """An untrained model without biases gives such logits: far more candidates than top_k."""
    logits = torch.zeros(3, 500)
    assert top_classes(logits, 20).tolist() == [list(range(20))] * 3


def test_no_positive_at_all_gives_zeros():
    found = accumulate(LOGITS, np.zeros_like(LABELS)).compute()
    assert [found[name] for name in ("gap", "map", "hit_at_1", "perr", "precision", "recall")] == [0.0] * 6


def test_nothing_predicted_gives_a_precision_of_zero():
    assert accumulate(LOGITS - 100, LABELS).compute()["precision"] == 0.0


@pytest.mark.parametrize("where", [(0, 0), (2, 4)])
def test_a_nan_logit_is_refused_in_words(where):
    logits = LOGITS.copy()
    logits[where] = np.nan
    with pytest.raises(ValueError, match="got NaN in 1 of 3 videos"):
        accumulate(logits, LABELS)


@pytest.mark.parametrize("where", [0, 1, 127, 128, 255, 256, 299])
def test_a_nan_is_found_in_any_class(where):
    logits = np.zeros((2, 300), np.float32)
    logits[1, where] = np.nan
    with pytest.raises(ValueError, match="got NaN in 1 of 2 videos"):
        accumulate(logits, np.zeros((2, 300), np.int64))


def test_a_nan_that_only_compute_can_see_is_refused_there(monkeypatch):
    """On CUDA, an update reads no value on the host."""
    monkeypatch.setattr("models.metrics.accumulator.rank_by_candidates", rank_by_sorting)
    logits = LOGITS.copy()
    logits[1, 3] = np.nan
    accumulator = accumulate(logits, LABELS)
    with pytest.raises(ValueError, match="got NaN in 1 of 3 videos"):
        accumulator.compute()


def test_infinite_logits_rank_and_the_loss_says_infinity():
    logits = LOGITS.copy()
    logits[0, 0], logits[1, 0], logits[2, 4] = np.inf, -np.inf, np.inf
    labels = LABELS.copy()
    labels[0, 0] = 0
    found = accumulate(logits, labels).compute()
    assert 0 < found["gap"] < 1 and found["loss"] == np.inf


def test_no_video_is_refused():
    with pytest.raises(ValueError, match="at least one video"):
        Accumulator(5).compute()


def test_accumulators_of_different_classes_do_not_merge():
    with pytest.raises(ValueError, match="must agree"):
        Accumulator(5).merge(Accumulator(6))


def test_logits_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"must be \[videos, 6\]"):
        Accumulator(6).update(torch.tensor(LOGITS), *sparse(LABELS))


def test_scores_and_labels_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="must both be"):
        metrics.gap(SCORES, LABELS[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_accepted(dtype):
    accumulator = Accumulator(5)
    accumulator.update(torch.tensor(LOGITS).to(dtype).requires_grad_(), *sparse(LABELS))
    assert accumulator.compute()["gap"] == pytest.approx(0.5588675, abs=1e-6)


def test_a_million_cells_leave_two_hundred_bytes_a_video():
    rng = np.random.default_rng(0)
    accumulator = accumulate(rng.normal(size=(256, 3862)).astype(np.float32), np.eye(256, 3862, dtype=np.int64))
    assert sum(array.nbytes for array in accumulator.state_dict().values()) == 256 * 212 + 3862 * 8 + 2 * 8


def test_float64_logits_after_float32_ones_keep_their_digits():
    accumulator = accumulate(LOGITS[:1].astype(np.float32), LABELS[:1])
    accumulator.merge(accumulate(LOGITS[1:], LABELS[1:]))
    assert accumulator.state_dict()["scores"].dtype == np.float64
    assert accumulator.compute() == pytest.approx(accumulate(LOGITS, LABELS).compute(), rel=1e-6)


def test_without_the_loss_the_rest_is_the_same():
    accumulator = Accumulator(5, loss=False)
    accumulator.update(torch.tensor(LOGITS), *sparse(LABELS))
    expected = accumulate(LOGITS, LABELS).compute()
    del expected["loss"], expected["calibration_error"]
    assert Accumulator.from_state(accumulator.state_dict()).compute() == expected
    with pytest.raises(ValueError, match="must agree"):
        accumulator.merge(accumulate(LOGITS, LABELS))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -1.5, 3e38, -3e38, 1e-45, -1e-45, np.inf, -np.inf])))
def test_the_pool_is_ranked_as_a_stable_sort_ranks_it(scores):
    scores = np.array(scores, np.float32)
    assert descending(scores).tolist() == np.argsort(-scores, kind="stable").tolist()
