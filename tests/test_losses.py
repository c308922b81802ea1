"""The sparse loss against dense cross-entropy, the published vectors, penalties and bootstrap weights."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import losses
from models.losses import LossConfig, sigmoid_cross_entropy

# reference/systems.md, section C
P = torch.tensor(
    [[0.9, 0.8, 0.1, 0.2, 0.05], [0.3, 0.7, 0.6, 0.4, 0.02], [0.55, 0.15, 0.25, 0.35, 0.95]], dtype=torch.float64
)
Y = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]])
Z = torch.logit(P)
OFFSETS, INDICES = torch.tensor([0, 2, 4, 6]), torch.tensor([0, 2, 1, 2, 0, 3])
COUNTS = torch.tensor([500, 100, 10, 1, 250])  # of 1000 videos


def sparse(labels_BC):
    rows, classes = torch.nonzero(labels_BC, as_tuple=True)
    counts = torch.bincount(rows, minlength=len(labels_BC))
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]), classes


def dense(logits_BC, labels_BC, pos_weights_C=None, example_weights_B=None):
    """The definition: sum over classes, mean over videos."""
    cells = F.binary_cross_entropy_with_logits(
        logits_BC, labels_BC.to(logits_BC.dtype), pos_weight=pos_weights_C, reduction="none"
    )
    losses_B = cells.sum(dim=1)
    return (losses_B if example_weights_B is None else losses_B * example_weights_B).mean()


@st.composite
def problems(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_videos, num_classes = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    logits = 6 * torch.randn(num_videos, num_classes, generator=generator)
    labels = torch.rand(num_videos, num_classes, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    pos = 5 * torch.rand(num_classes, generator=generator) + 0.1 if draw(st.booleans()) else None
    example = torch.randint(4, (num_videos,), generator=generator).float() if draw(st.booleans()) else None
    return logits, labels, pos, example


@settings(deadline=None)
@given(problems())
def test_loss_and_gradient_equal_dense_cross_entropy(problem):
    logits, labels, pos, example = problem
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = sigmoid_cross_entropy(ours, *sparse(labels), pos_weights_C=pos, example_weights_B=example)
    expected = dense(theirs, labels, pos if pos is None else pos.double(), example)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pos", [None, COUNTS.double() / 100])
@pytest.mark.parametrize("example", [None, torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)])
def test_the_gradient_is_the_derivative(pos, example):
    def loss(logits):
        return sigmoid_cross_entropy(logits, OFFSETS, INDICES, pos_weights_C=pos, example_weights_B=example)

    assert torch.autograd.gradcheck(loss, (Z.clone().requires_grad_(),))


def test_under_bf16_autocast_the_loss_is_computed_in_float32():
    """3,862 numbers of 8 bits: summed in bfloat16 the loss would be off by percents."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(64, 3862, generator=generator) - 5).bfloat16()
    labels = torch.rand(64, 3862, generator=generator) < 0.001
    ours, theirs = logits.clone().requires_grad_(), logits.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sigmoid_cross_entropy(ours, *sparse(labels))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dense(theirs, labels), rtol=1e-5, atol=0)
    loss.backward()
    dense(theirs, labels).backward()
    assert ours.grad.dtype == torch.bfloat16
    torch.testing.assert_close(ours.grad, theirs.grad.bfloat16(), rtol=0, atol=0)  # rounded once, at the end


def test_extreme_logits_give_a_finite_loss_and_gradient():
    logits = torch.tensor([[1e4, -1e4, 100.0, -100.0]], requires_grad=True)
    loss = sigmoid_cross_entropy(logits, torch.tensor([0, 2]), torch.tensor([0, 2]))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(1, 4))


def test_a_video_without_labels_costs_its_negatives():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = sigmoid_cross_entropy(logits, torch.tensor([0, 0, 0]), torch.tensor([], dtype=torch.long))
    assert loss.item() == pytest.approx(3 * np.log(2))


def test_a_nan_logit_gives_a_nan_loss():
    """So that training can see it."""
    assert sigmoid_cross_entropy(torch.full((1, 3), torch.nan), torch.tensor([0, 1]), torch.tensor([1])).isnan()


# The published vectors


def test_cross_entropy_of_the_published_example():
    assert sigmoid_cross_entropy(Z, OFFSETS, INDICES).item() == pytest.approx(3.7135389, abs=1e-7)


def test_the_mean_over_both_axes_is_the_sum_over_the_number_of_classes():
    assert sigmoid_cross_entropy(Z, OFFSETS, INDICES).item() / 5 == pytest.approx(0.7427077, abs=1e-7)


def test_the_published_epsilon_moves_the_loss_in_the_fourth_digit():
    """google/youtube-8m adds 1e-5 inside the logarithms; from logits none is needed."""
    published = -(Y * (P + 1e-5).log() + (1 - Y) * (1 - P + 1e-5).log()).sum(dim=1)
    assert published.tolist() == pytest.approx([4.291636, 1.755132, 5.093321], abs=1e-6)
    assert published.mean().item() == pytest.approx(3.7133628, abs=1e-7)
    assert sigmoid_cross_entropy(Z, OFFSETS, INDICES).item() == pytest.approx(published.mean().item(), abs=2e-4)


def test_positive_weights_are_the_root_of_negatives_over_positives():
    weights = losses.positive_weights(COUNTS, 1000, 0.5)
    assert weights.tolist() == pytest.approx([1, 3, 9.949874, 31.606961, 1.732051], rel=1e-6)


def test_weighted_cross_entropy_of_the_published_example():
    weights = losses.positive_weights(COUNTS, 1000, 0.5).double()
    loss = sigmoid_cross_entropy(Z, OFFSETS, INDICES, pos_weights_C=weights)
    assert loss.item() == pytest.approx(23.0551680, abs=1e-5)


def test_bootstrap_weights_divide_by_the_number_of_videos():
    weights = torch.bincount(torch.tensor([0, 2, 2]), minlength=3)
    assert weights.tolist() == [1, 0, 2]
    loss = sigmoid_cross_entropy(Z, OFFSETS, INDICES, example_weights_B=weights)
    assert loss.item() == pytest.approx(4.8263351, abs=1e-7)


# Class weights


def test_class_weights_stay_finite_without_positives_and_without_negatives():
    weights = losses.positive_weights(np.array([0, 1, 99, 100]), 100, 1.0)
    assert weights.tolist() == pytest.approx([99, 99, 1 / 99, 1 / 99])


def test_class_weights_of_read_only_arrays():
    counts = COUNTS.numpy().copy()
    counts.flags.writeable = False  # as a memory map is
    assert torch.equal(losses.positive_weights(counts, 1000, 0.5), losses.positive_weights(COUNTS, 1000, 0.5))


def test_power_zero_weighs_nothing():
    assert losses.positive_weights(COUNTS, 1000, 0.0).tolist() == [1.0] * 5


def test_class_weights_are_capped():
    assert losses.positive_weights(COUNTS, 1000, 0.5, maximum=5.0).max() == 5.0


def test_class_weights_need_two_videos():
    with pytest.raises(ValueError, match="at least 2, but got 1"):
        losses.positive_weights(COUNTS, 1, 0.5)


# Penalties

MATRICES = [torch.tensor([[1.0, -2.0], [0.0, 4.0]]), torch.tensor([[3.0, -5.0]])]


@pytest.mark.parametrize(
    ("l1", "l2", "convention", "expected"),
    [
        (1.0, 0.0, "mean", 7 / 4 + 8 / 2),
        (0.0, 1.0, "mean", 21 / 8 + 34 / 4),
        (1.0, 0.0, "sum", 7 + 8),
        (0.0, 1.0, "sum", 21 / 2 + 34 / 2),
        (0.5, 2.0, "mean", 0.5 * (7 / 4 + 8 / 2) + 2 * (21 / 8 + 34 / 4)),
        (0.0, 0.0, "mean", 0.0),
    ],
)
def test_penalties_by_both_conventions(l1, l2, convention, expected):
    assert losses.penalty(MATRICES, l1, l2, convention).item() == pytest.approx(expected)


@pytest.mark.parametrize("convention", ["mean", "sum"])
@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7), (0.0, 0.0)])
def test_penalty_gradients_in_place_equal_autograd(l1, l2, convention):
    ours = [m.clone().requires_grad_() for m in MATRICES]
    theirs = [m.clone().requires_grad_() for m in MATRICES]
    sum(m.sin().sum() for m in ours).backward()
    losses.add_penalty_gradients(ours, l1, l2, convention)
    (sum(m.sin().sum() for m in theirs) + losses.penalty(theirs, l1, l2, convention)).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_penalty_gradients_before_backward_are_refused():
    with pytest.raises(ValueError, match="call backward first"):
        losses.add_penalty_gradients([torch.ones(2, 2, requires_grad=True)], 1.0, 0.0)


# Bootstrap


def test_per_batch_bootstrap_draws_as_many_as_there_are_anew_each_time():
    generator = torch.Generator().manual_seed(1)
    first, second = (losses.per_batch_bootstrap_weights(1000, generator) for _ in range(2))
    assert first.sum() == second.sum() == 1000 and not torch.equal(first, second)
    assert (first == 0).float().mean() == pytest.approx(np.exp(-1), abs=0.05)
    assert torch.equal(first, losses.per_batch_bootstrap_weights(1000, torch.Generator().manual_seed(1)))


def test_fixed_bootstrap_is_one_multinomial_draw_by_seed():
    weights = losses.fixed_bootstrap_weights(5000, seed=3)
    assert weights.dtype == torch.float32 and weights.sum() == 5000
    assert torch.equal(weights, losses.fixed_bootstrap_weights(5000, seed=3))
    assert not torch.equal(weights, losses.fixed_bootstrap_weights(5000, seed=4))
    assert weights.var().item() == pytest.approx(1, abs=0.1)


# Configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [("l1", -1.0), ("l2", -0.1), ("pos_weight_power", -0.5), ("pos_weight_max", 0.0), ("l2", float("nan"))],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} must .*, but got {value}"):
        LossConfig(**{field: value})


def test_configuration_survives_asdict():
    config = LossConfig(l2=100.0, pos_weight_power=0.5, bootstrap="fixed")
    assert LossConfig(**dataclasses.asdict(config)) == config
