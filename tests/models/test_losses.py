"""The sparse losses against their dense definitions and known values, and weights of classes and videos."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import losses
from models.losses import LossConfig, sigmoid_cross_entropy
from models.losses import weights as loss_weights

# The example of the known values below: probabilities, labels, logits.
P = torch.tensor(
    [[0.9, 0.8, 0.1, 0.2, 0.05], [0.3, 0.7, 0.6, 0.4, 0.02], [0.55, 0.15, 0.25, 0.35, 0.95]], dtype=torch.float64
)
Y = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]])
Z = torch.logit(P)
OFFSETS, INDICES = torch.tensor([0, 2, 4, 6]), torch.tensor([0, 2, 1, 2, 0, 3])
COUNTS = torch.tensor([500, 100, 10, 1, 250])  # in 1000 videos


def sparse(labels_BC):
    rows, classes = torch.nonzero(labels_BC, as_tuple=True)
    counts = torch.bincount(rows, minlength=len(labels_BC))
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]), classes


def dense(logits_BC, labels_BC, pos_weights_C=None, example_weights_B=None, rated_BC=None):
    """The definition: sum over (rated) classes, mean over videos."""
    cells = F.binary_cross_entropy_with_logits(
        logits_BC, labels_BC.to(logits_BC.dtype), pos_weight=pos_weights_C, reduction="none"
    )
    losses_B = (cells if rated_BC is None else cells * rated_BC).sum(dim=1)
    return (losses_B if example_weights_B is None else losses_B * example_weights_B).mean()


@st.composite
def problems(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_videos, num_classes = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    logits = 6 * torch.randn(num_videos, num_classes, generator=generator)
    labels = torch.rand(num_videos, num_classes, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    pos = 5 * torch.rand(num_classes, generator=generator) + 0.1 if draw(st.booleans()) else None
    example = torch.randint(4, (num_videos,), generator=generator).float() if draw(st.booleans()) else None
    rated = torch.rand(num_videos, num_classes, generator=generator) < 0.4 if draw(st.booleans()) else None
    return logits, labels if rated is None else labels & rated, pos, example, rated


def given_rated(rated_BC):
    """The mask as arguments of a loss."""
    return {} if rated_BC is None else dict(zip(("rated_offsets", "rated_indices"), sparse(rated_BC), strict=True))


@settings(deadline=None)
@given(problems())
def test_loss_and_gradient_equal_dense_cross_entropy(problem):
    logits, labels, pos, example, rated = problem
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    weights = {"pos_weights_C": pos, "example_weights_B": example}
    loss = sigmoid_cross_entropy(ours, *sparse(labels), **given_rated(rated), **weights)
    expected = dense(theirs, labels, pos if pos is None else pos.double(), example, rated)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pos", [None, COUNTS.double() / 100])
@pytest.mark.parametrize("example", [None, torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("rated", [None, torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 0, 1, 1]])])
def test_the_gradient_is_the_derivative(pos, example, rated):
    options = {"pos_weights_C": pos, "example_weights_B": example, **given_rated(rated)}

    def loss(logits):
        return sigmoid_cross_entropy(logits, OFFSETS, INDICES, **options)

    assert torch.autograd.gradcheck(loss, (Z.clone().requires_grad_(),))


def test_under_bf16_autocast_the_loss_is_computed_in_float32():
    """The sum of 3,862 numbers in bfloat16, with 8 significant bits, would be wrong by several percent."""
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
    """The training can then detect it."""
    assert sigmoid_cross_entropy(torch.full((1, 3), torch.nan), torch.tensor([0, 1]), torch.tensor([1])).isnan()


# Known values of the example


def test_cross_entropy_of_the_published_example():
    assert sigmoid_cross_entropy(Z, OFFSETS, INDICES).item() == pytest.approx(3.7135389, abs=1e-7)


def test_the_mean_over_both_axes_is_the_sum_over_the_number_of_classes():
    assert sigmoid_cross_entropy(Z, OFFSETS, INDICES).item() / 5 == pytest.approx(0.7427077, abs=1e-7)


def test_the_published_epsilon_moves_the_loss_in_the_fourth_digit():
    """google/youtube-8m adds 1e-5 inside the logarithms, which a loss of logits does not need."""
    published = -(Y * (P + 1e-5).log() + (1 - Y) * (1 - P + 1e-5).log()).sum(dim=1)
    assert published.tolist() == pytest.approx([4.291636, 1.755132, 5.093321], abs=1e-6)
    assert published.mean().item() == pytest.approx(3.7133628, abs=1e-7)
    assert sigmoid_cross_entropy(Z, OFFSETS, INDICES).item() == pytest.approx(published.mean().item(), abs=2e-4)


def test_positive_weights_are_the_root_of_negatives_over_positives():
    weights = loss_weights.positive_weights(COUNTS, 1000, 0.5)
    assert weights.tolist() == pytest.approx([1, 3, 9.949874, 31.606961, 1.732051], rel=1e-6)


def test_weighted_cross_entropy_of_the_published_example():
    weights = loss_weights.positive_weights(COUNTS, 1000, 0.5).double()
    loss = sigmoid_cross_entropy(Z, OFFSETS, INDICES, pos_weights_C=weights)
    assert loss.item() == pytest.approx(23.0551680, abs=1e-5)


def test_bootstrap_weights_divide_by_the_number_of_videos():
    weights = torch.bincount(torch.tensor([0, 2, 2]), minlength=3)
    assert weights.tolist() == [1, 0, 2]
    loss = sigmoid_cross_entropy(Z, OFFSETS, INDICES, example_weights_B=weights)
    assert loss.item() == pytest.approx(4.8263351, abs=1e-7)


# The other kinds

KINDS = {
    "cross_entropy": LossConfig(kind="cross_entropy"),
    "hinge": LossConfig(kind="hinge", margin=0.8),
    "hinge of probabilities": LossConfig(kind="hinge", scores="probabilities"),
    "softmax": LossConfig(kind="softmax"),
    "softmax of probabilities": LossConfig(kind="softmax", scores="probabilities"),
    "hamming": LossConfig(kind="hamming"),
    "weighted_hamming": LossConfig(kind="weighted_hamming"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def defined(kind, logits, y, pos=None, example=None, rated=None, class_weights=None):
    """The losses written densely, cell by cell, in float64."""
    config, z = KINDS[kind], logits.double()
    p = z.sigmoid()
    w = torch.where(y > 0, 1.0 if pos is None else pos.double(), 1.0)
    v = 1.0 if class_weights is None else class_weights.double()
    mask = torch.ones_like(z) if rated is None else rated.double()
    s = p if config.scores == "probabilities" else z
    if config.kind == "cross_entropy":
        cells = -torch.where(y > 0, (p + 1e-5).log(), (1 - p + 1e-5).log())
    elif config.kind == "hinge":
        cells = (config.settings["margin"] - (2 * y - 1) * s).clamp(min=0)
    elif config.kind == "softmax":
        shares = y / y.sum(1, keepdim=True).clamp(min=1e-7)
        total = torch.stack([row[kept > 0].exp().sum().log() for row, kept in zip(s, mask, strict=True)])
        cells = torch.where(y > 0, shares * (total[:, None] - s), torch.zeros_like(s))
    else:
        q = p.clamp(1e-7, 1 - 1e-7)
        cells = -torch.where(y > 0, q.log(), (1 - q).log()) * v
    losses_B = (cells * w * mask).sum(1)
    return (losses_B if example is None else losses_B * example.double()).mean()


@every_kind
@settings(deadline=None, max_examples=40)
@given(problems())
def test_every_kind_equals_its_dense_definition(kind, problem):
    logits, labels, pos, example, rated = problem
    class_weights = torch.linspace(0.5, 3, logits.shape[1]) if kind == "weighted_hamming" else None
    loss_of = losses.build(KINDS[kind], class_weights)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = loss_of(ours, *sparse(labels), **given_rated(rated), pos_weights_C=pos, example_weights_B=example)
    expected = defined(kind, theirs, labels.double(), pos, example, rated, class_weights)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


@every_kind
def test_a_cell_that_is_not_rated_has_no_gradient_and_no_say(kind):
    rated = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 0, 1, 1]])
    loss_of = losses.build(KINDS[kind], torch.ones(5, dtype=torch.float64))
    logits = Z.clone().requires_grad_()
    loss = loss_of(logits, OFFSETS, INDICES, **given_rated(rated))
    loss.backward()
    assert (logits.grad[rated == 0] == 0).all() and logits.grad.any()
    assert loss_of(torch.where(rated > 0, Z, 9.0), OFFSETS, INDICES, **given_rated(rated)) == loss.detach()


@every_kind
def test_a_video_without_any_rated_class_costs_nothing(kind):
    nothing = torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    rated = {"rated_offsets": nothing[0], "rated_indices": nothing[1]}
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = losses.build(KINDS[kind], torch.ones(5))(logits, *nothing, **rated)
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LossConfig(kind="cross_entropy"), 3.7133628),
        (LossConfig(kind="hamming"), 3.7135389),
        (LossConfig(kind="hinge", scores="probabilities"), 4.9733333),
        (LossConfig(kind="softmax", scores="probabilities"), 1.5434603),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_kinds_on_the_published_example(config, expected):
    assert losses.build(config)(Z, OFFSETS, INDICES).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("power", "expected"), [(1.0, 41.9124234), (2.0, None)])
def test_weighted_hamming_on_the_published_example(power, expected):
    weights = loss_weights.class_weights(torch.tensor([100, 50, 10, 5, 1]), power)
    assert (weights ** (1 / power)).tolist() == pytest.approx([0.332, 0.664, 3.32, 6.64, 33.2], rel=1e-6)
    config = LossConfig(kind="weighted_hamming", class_weight_power=power)
    loss = losses.build(config, weights.double())(Z, OFFSETS, INDICES).item()
    cells = F.binary_cross_entropy(P, Y.double(), reduction="none")
    assert loss == pytest.approx((cells * weights).sum(1).mean().item(), rel=1e-6)
    assert expected is None or loss == pytest.approx(expected, abs=1e-5)


def test_published_hinge_lets_every_negative_pay_its_margin_and_ours_does_not():
    """google/youtube-8m applies it to sigmoid outputs, so that a perfect model still pays for all negatives."""
    perfect = torch.where(Y > 0, 30.0, -30.0).double()
    published = losses.build(LossConfig(kind="hinge", scores="probabilities"))
    assert published(perfect, OFFSETS, INDICES).item() == pytest.approx(3.0)  # three negatives a video
    assert losses.build(LossConfig(kind="hinge"))(perfect, OFFSETS, INDICES).item() == 0


def test_published_softmax_of_probabilities_is_nearly_flat_and_ours_is_not():
    one = torch.tensor([0, 1]), torch.tensor([0])
    perfect = torch.full((1, 1000), -30.0, dtype=torch.float64)
    perfect[0, 0] = 30
    published = losses.build(LossConfig(kind="softmax", scores="probabilities"))
    # 5.9, while a model that has learned nothing has 6.9
    assert published(perfect, *one).item() == pytest.approx(np.log(np.e + 999) - 1)
    assert losses.build(LossConfig(kind="softmax"))(perfect, *one).item() == pytest.approx(0, abs=1e-9)


def test_keras_clipping_takes_the_gradient_of_what_is_most_wrong():
    """A label at a logit of -20, in float32, where 1 - 1e-7 has another value than in float64."""
    for config, learns in ((LossConfig(kind="hamming"), False), (LossConfig(), True)):
        logits = torch.tensor([[-20.0, 0.0]], requires_grad=True)
        losses.build(config)(logits, torch.tensor([0, 1]), torch.tensor([0])).backward()
        assert bool(logits.grad[0, 0]) is learns


@every_kind
def test_half_precision_logits_are_widened(kind):
    logits = Z.bfloat16().requires_grad_()
    loss = losses.build(KINDS[kind], torch.ones(5))(logits, OFFSETS, INDICES)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16


# Distillation

TEACHER = torch.tensor([[0.7, 0.5, 0.2, 0.1, 0.0], [0.1, 0.9, 0.4, 0.2, 0.1], [0.6, 0.0, 0.1, 0.3, 0.8]]).double()


def test_distillation_is_the_cross_entropy_against_the_teachers_probabilities():
    """The winner of 2018 has -sum q log(p + 1e-5) + (1 - q) log(1 - p + 1e-5); a loss of logits needs no 1e-5."""
    published = -(TEACHER * (P + 1e-5).log() + (1 - TEACHER) * (1 - P + 1e-5).log()).sum(1)
    classes = torch.argsort(TEACHER, descending=True)
    found = losses.distillation(Z, classes, TEACHER.gather(1, classes))
    assert found.item() == pytest.approx(published.mean().item(), abs=5e-4)
    weighted = losses.distillation(Z, classes, TEACHER.gather(1, classes), torch.tensor([1.0, 0.0, 2.0]))
    assert weighted.item() == pytest.approx((published[0] + 2 * published[2]).item() / 3, abs=5e-4)


def test_classes_that_the_teacher_does_not_list_have_the_probability_0():
    classes = torch.argsort(TEACHER, descending=True)[:, :2]
    cut = torch.zeros_like(TEACHER).scatter_(1, classes, TEACHER.gather(1, classes))
    everything = torch.arange(5).expand(3, 5)
    found = losses.distillation(Z, classes, TEACHER.gather(1, classes))
    assert found.item() == pytest.approx(losses.distillation(Z, everything, cut).item())


def test_a_student_that_gives_the_teachers_probabilities_has_no_gradient():
    logits = torch.logit(TEACHER.clamp(0.01, 0.99)).requires_grad_()
    everything = torch.arange(5).expand(3, 5)
    losses.distillation(logits, everything, TEACHER.clamp(0.01, 0.99)).backward()
    assert logits.grad.abs().max() < 1e-12


# Class weights


def test_class_weights_stay_finite_without_positives_and_without_negatives():
    weights = loss_weights.positive_weights(np.array([0, 1, 99, 100]), 100, 1.0)
    assert weights.tolist() == pytest.approx([99, 99, 1 / 99, 1 / 99])


def test_class_weights_of_read_only_arrays():
    counts = COUNTS.numpy().copy()
    counts.flags.writeable = False  # as a memory map is
    expected = loss_weights.positive_weights(COUNTS, 1000, 0.5)
    assert torch.equal(loss_weights.positive_weights(counts, 1000, 0.5), expected)


def test_power_zero_weighs_nothing():
    assert loss_weights.positive_weights(COUNTS, 1000, 0.0).tolist() == [1.0] * 5


def test_class_weights_are_capped():
    assert loss_weights.positive_weights(COUNTS, 1000, 0.5, maximum=5.0).max() == 5.0


def test_a_class_is_weighed_among_the_videos_it_is_rated_for():
    """3 negatives to 1 positive; 1 to 1; of 4 no positive, which counts as one; rated once or never: weight 1."""
    weights = loss_weights.positive_weights(torch.tensor([1, 2, 0, 1, 0]), torch.tensor([4, 4, 4, 1, 0]), 0.5)
    assert weights.tolist() == pytest.approx([3**0.5, 1, 3**0.5, 1, 1])


# Bootstrap


def test_per_batch_bootstrap_draws_as_many_as_there_are_anew_each_time():
    generator = torch.Generator().manual_seed(1)
    first, second = (loss_weights.per_batch_bootstrap_weights(1000, generator) for _ in range(2))
    assert first.sum() == second.sum() == 1000 and not torch.equal(first, second)
    assert (first == 0).float().mean() == pytest.approx(np.exp(-1), abs=0.05)
    assert torch.equal(first, loss_weights.per_batch_bootstrap_weights(1000, torch.Generator().manual_seed(1)))


def test_fixed_bootstrap_is_one_multinomial_draw_by_seed():
    weights = loss_weights.fixed_bootstrap_weights(5000, seed=3)
    assert weights.dtype == torch.float32 and weights.sum() == 5000
    assert torch.equal(weights, loss_weights.fixed_bootstrap_weights(5000, seed=3))
    assert not torch.equal(weights, loss_weights.fixed_bootstrap_weights(5000, seed=4))
    assert weights.var().item() == pytest.approx(1, abs=0.1)


# Configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [("l1", -1.0), ("l2", -0.1), ("pos_weight_power", -0.5), ("pos_weight_max", 0.0), ("l2", float("nan"))],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} must .*, but got {value}"):
        LossConfig(**{field: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "hinge", "epsilon": 1e-5}, "epsilon has no effect on hinge, which has margin, scores, but got 1e-05"),
        ({"margin": 1.0}, "margin has no effect on sigmoid_cross_entropy, which has none of its own"),
        ({"kind": "hamming", "class_weight_power": 1.0}, "class_weight_power has no effect on hamming"),
        ({"kind": "cross_entropy", "epsilon": 0.0}, r"epsilon must be in \[1e-30, 0.5\), but got 0.0"),
        ({"kind": "hinge", "margin": 0.0}, r"margin must be from 1e-30 to 1e\+06, but got 0.0"),
        ({"kind": "weighted_hamming", "class_weight_power": -1.0}, "class_weight_power must be from 0 to 4"),
        ({"kind": "focal"}, "kind must be one of sigmoid_cross_entropy, .*, but got 'focal'"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)


def test_configuration_survives_asdict():
    config = LossConfig(l2=100.0, pos_weight_power=0.5, bootstrap="fixed")
    assert LossConfig(**dataclasses.asdict(config)) == config


@pytest.mark.parametrize("kind", losses.LOSSES)
@pytest.mark.parametrize("rated", [None, torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 0, 1, 1]])])
@pytest.mark.parametrize("weighted", [False, True])
def test_entries_behind_the_lists_change_no_bit(kind, rated, weighted):
    """A CUDA graph has room for more labels than a batch has; what an earlier batch left there must not count."""
    loss_of = losses.build(LossConfig(kind=kind), torch.linspace(0.5, 2, 5) if kind == "weighted_hamming" else None)
    weights = {}
    if weighted:
        weights = {"pos_weights_C": torch.arange(1.0, 6), "example_weights_B": torch.tensor([1.0, 0.0, 2.0])}
    lists = {"label_offsets": OFFSETS, "label_indices": INDICES, **given_rated(rated)}
    left_behind = torch.tensor([4, 0, 0, 2])
    longer = {n: torch.cat([t, left_behind]) if n.endswith("indices") else t for n, t in lists.items()}
    results = []
    for entries in (lists, longer):
        logits = Z.float().requires_grad_()
        loss = loss_of(logits, **entries, **weights)
        loss.backward()
        results.append((loss.detach(), logits.grad))
    for exact, padded in zip(*results, strict=True):
        assert torch.isfinite(exact).all() and torch.equal(padded, exact)
