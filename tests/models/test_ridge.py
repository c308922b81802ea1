"""The closed-form probe against scikit-learn, and its leave-one-out scores against fits without one video."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from models.metrics import gap
from models.ridge import NormalEquations, add_by_label, add_by_product, logistic_scale
from tests.support.operator_trace import host_looks

N, H, C = 160, 24, 9


@pytest.fixture(scope="module")
def videos():
    """Embeddings [N, H] with a mean unlike 0, and labels, dense [N, C] and sparse; the last class has no positive."""
    random = np.random.default_rng(5)
    x = random.normal(size=(N, H)) @ random.normal(size=(H, H)) + 3
    y = (x @ random.normal(size=(H, C)) + random.normal(size=(N, C)) * 5 > 12).astype(np.int64)
    y[:, -1] = 0
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def sparse(y):
    rows, classes = y.nonzero(as_tuple=True)
    return torch.searchsorted(rows, torch.arange(len(y) + 1)), classes


def summed(x, y, batch=50):
    equations = NormalEquations(H, C)
    for start in range(0, len(x), batch):
        equations.update(x[start : start + batch], *sparse(y[start : start + batch]))
    return equations


@pytest.mark.parametrize("penalty", [0.01, 1.0, 300.0])
def test_equals_scikit_learns_ridge(videos, penalty):
    x, y = videos
    weight, bias = summed(x, y).decompose().solve(penalty)
    oracle = SklearnRidge(alpha=penalty).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(weight, oracle.coef_, atol=1e-4)
    np.testing.assert_allclose(bias, oracle.intercept_, atol=1e-4)


def test_the_batches_do_not_show_in_the_solution(videos):
    x, y = videos
    one, many = (summed(x, y, batch).decompose().solve(1.0) for batch in (N, 7))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-4)


@pytest.mark.parametrize("add", [add_by_label, add_by_product])
def test_the_sums_of_both_devices_are_those_of_dense_labels(videos, add):
    """A GPU adds by a product, a CPU label by label."""
    x, y = videos
    yx_CH, y_C = torch.ones(C, H, dtype=torch.float64), torch.ones(C, dtype=torch.float64)
    add(yx_CH, y_C, x, *sparse(y))
    torch.testing.assert_close(yx_CH, 1 + y.double().T @ x.double(), rtol=1e-5, atol=1e-4)
    assert torch.equal(y_C, 1 + y.sum(dim=0).double())


def test_an_update_does_not_make_the_host_wait(videos):
    x, y = videos
    equations, labels = NormalEquations(H, C), sparse(y)
    assert host_looks(lambda: equations.update(x, *labels)) == {}
    yx_CH, y_C = torch.zeros(C, H, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    assert host_looks(lambda: add_by_product(yx_CH, y_C, x, *labels)) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_two_updates_on_a_gpu_give_the_same_bits(videos):
    x, y = videos
    offsets, classes = sparse(y)
    one, two = (NormalEquations(H, C, "cuda") for _ in range(2))
    for equations in (one, two):
        equations.update(x.cuda(), offsets.cuda(), classes.cuda())
    assert torch.equal(one._yx_CH, two._yx_CH) and torch.equal(one._y_C, two._y_C)


@pytest.mark.parametrize("penalty", [0.1, 50.0])
def test_leave_one_out_is_a_solution_without_the_video(videos, penalty):
    x, y = videos
    shortcut = summed(x, y).decompose().leave_one_out(x[:6], *sparse(y[:6]), penalty)
    for n in range(6):
        others = torch.arange(N) != n
        weight, bias = summed(x[others], y[others]).decompose().solve(penalty)
        torch.testing.assert_close(shortcut[n], x[n] @ weight.T + bias, rtol=0, atol=2e-4)


def test_the_scale_is_the_mean_eigenvalue(videos):
    x, y = videos
    expected = float(((x - x.mean(dim=0)) ** 2).sum()) / H
    assert summed(x, y).decompose().scale == pytest.approx(expected, rel=1e-5)


def test_fewer_videos_than_units_are_enough(videos):
    x, y = videos
    weight, _ = summed(x[:5], y[:5]).decompose().solve(1e-3)
    assert torch.isfinite(weight).all()


def test_one_video_is_refused(videos):
    x, y = videos
    with pytest.raises(ValueError, match="at least 2 videos, but got 1"):
        summed(x[:1], y[:1]).decompose()


def test_a_penalty_of_zero_is_refused(videos):
    with pytest.raises(ValueError, match="penalty must be positive, but got 0"):
        summed(*videos).decompose().solve(0.0)


class TestLogisticScale:
    def test_finds_the_slope_and_shift_that_made_the_labels(self):
        generator = torch.Generator().manual_seed(3)
        scores = torch.rand(4000, 20, generator=generator)
        y = (torch.rand(4000, 20, generator=generator) < (7 * scores - 5).sigmoid()).long()
        slope, shift = logistic_scale(scores, *sparse(y))
        assert slope == pytest.approx(7, abs=0.2) and shift == pytest.approx(-5, abs=0.2)

    def test_no_neighbouring_pair_is_better(self, videos):
        x, y = videos
        scores = summed(x, y).decompose().leave_one_out(x, *sparse(y), 50.0)
        slope, shift = logistic_scale(scores, *sparse(y))

        def loss(a, b):
            z = (a * scores + b).double()
            return float((torch.nn.functional.softplus(z) - y * z).sum())

        best = loss(slope, shift)
        for a, b in ((1.01, 0), (0.99, 0), (1, 0.02), (1, -0.02)):
            assert loss(slope * a, shift + b) > best

    def test_gap_is_that_of_the_scores(self, videos):
        x, y = videos
        scores = summed(x, y).decompose().leave_one_out(x, *sparse(y), 50.0)
        slope, shift = logistic_scale(scores, *sparse(y))
        assert gap(slope * scores + shift, y) == pytest.approx(gap(scores, y), abs=1e-6)

    def test_without_a_positive_it_is_the_log_odds(self):
        slope, shift = logistic_scale(torch.zeros(10, 4), torch.zeros(11, dtype=torch.int64), torch.empty(0, dtype=int))
        assert slope == 1 and shift == pytest.approx(math.log(0.5 / 40.5))

    def test_scores_that_order_the_wrong_way_round_are_not_turned(self):
        scores = torch.tensor([[0.0], [1.0], [2.0]])
        slope, _ = logistic_scale(scores, torch.tensor([0, 1, 1, 1]), torch.tensor([0]))
        assert slope == 1
