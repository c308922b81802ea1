"""Optimizers against their formulas, schedules, clipping, and the step that may be skipped."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from models import optim
from models.optim import ClipConfig, OptimizerConfig, ScheduleConfig, learning_rate_at
from models.optim.rmsprop_tf import RMSpropTF
from tests.support.operator_trace import host_looks

KINDS = {
    "rmsprop_tf": OptimizerConfig(kind="rmsprop_tf", learning_rate=0.01),
    "rmsprop_tf with momentum": OptimizerConfig(kind="rmsprop_tf", learning_rate=0.01, momentum=0.9),
    "adam": OptimizerConfig(kind="adam", learning_rate=0.01),
    "adamw": OptimizerConfig(kind="adamw", learning_rate=0.01, weight_decay=0.1),
    "sgd": OptimizerConfig(kind="sgd", learning_rate=0.01),
    "sgd with decay": OptimizerConfig(kind="sgd", learning_rate=0.01, weight_decay=0.1),
    "sgd with momentum": OptimizerConfig(kind="sgd", learning_rate=0.01, momentum=0.9),
    "sgd with nesterov": OptimizerConfig(kind="sgd", learning_rate=0.01, momentum=0.9, nesterov=True),
    "lars": OptimizerConfig(kind="lars", learning_rate=0.5),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((4, 3), (5,))]


def give_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def snapshot(parameters, optimizer):
    state = [optimizer.state[p] for p in parameters]
    tensors = [p.detach().clone() for p in parameters]
    return tensors + [v.clone() for s in state for _, v in sorted(s.items())]


def assert_bitwise_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


# RMSProp


@pytest.mark.parametrize("foreach", [False, True])
def test_first_steps_of_rmsprop_are_tensorflows(foreach):
    """Known values for g = 0.1 and lr = 0.001."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = RMSpropTF([weight], lr=0.001, foreach=foreach)
    moved = []
    for _ in range(3):
        before = weight.item()
        weight.grad = torch.full_like(weight, 0.1)
        optimizer.step()
        moved.append(before - weight.item())
    assert moved == pytest.approx([1.0535e-4, 1.1098e-4, 1.1690e-4], abs=1e-8)


def test_torchs_own_rmsprop_takes_a_first_step_thirty_times_larger():
    """The difference for which rmsprop_tf exists."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.RMSprop([weight], lr=0.001, alpha=0.9, eps=1e-10)
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    assert -weight.item() == pytest.approx(3.1623e-3, abs=1e-7)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_follows_its_formula(momentum, foreach):
    weight = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = RMSpropTF([weight], lr=0.02, decay=0.8, momentum=momentum, epsilon=1e-3, foreach=foreach)
    w, square, moved = np.ones(6), np.ones(6), np.zeros(6)
    rng = np.random.default_rng(0)
    for lr in (0.02, 0.02, 0.005, 0.01):
        g = rng.normal(size=6)
        square = 0.8 * square + 0.2 * g**2
        moved = momentum * moved + lr * g / np.sqrt(square + 1e-3)
        w = w - moved
        optim.set_learning_rate(optimizer, lr)
        weight.grad = torch.tensor(g)
        optim.step(optimizer)
        assert weight.tolist() == pytest.approx(w.tolist(), rel=1e-12)


# The other kinds, by their formulas


def test_adam_follows_its_formula():
    weight = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    config = OptimizerConfig(kind="adam", learning_rate=0.1, beta1=0.8, beta2=0.95, epsilon=1e-4)
    optimizer = optim.build(config, [weight])
    w, mean, square = np.ones(6), np.zeros(6), np.zeros(6)
    rng = np.random.default_rng(0)
    for t in range(1, 5):
        g = rng.normal(size=6)
        mean, square = 0.8 * mean + 0.2 * g, 0.95 * square + 0.05 * g**2
        w = w - 0.1 * (mean / (1 - 0.8**t)) / (np.sqrt(square / (1 - 0.95**t)) + 1e-4)
        weight.grad = torch.tensor(g)
        optim.step(optimizer)
        assert weight.tolist() == pytest.approx(w.tolist(), rel=1e-9)


@pytest.mark.parametrize(("momentum", "nesterov"), [(None, False), (0.9, False), (0.9, True)])
def test_sgd_follows_its_formula(momentum, nesterov):
    weight = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    config = OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=momentum, nesterov=nesterov)
    optimizer = optim.build(config, [weight])
    w, moved, m = np.ones(6), np.zeros(6), momentum or 0.0
    rng = np.random.default_rng(0)
    for _ in range(4):
        g = rng.normal(size=6)
        moved = m * moved + g
        w = w - 0.1 * (g + m * moved if nesterov else moved)
        weight.grad = torch.tensor(g)
        optim.step(optimizer)
        assert weight.tolist() == pytest.approx(w.tolist(), rel=1e-12)


@pytest.mark.parametrize("kind", ["matrix", "vector"])
def test_lars_follows_its_formula(kind):
    """As in MoCo v3, matrices are decayed and scaled by trust ||w|| / ||g||, biases and gains are not."""
    shape = (2, 3) if kind == "matrix" else (6,)
    weight = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    config = OptimizerConfig(kind="lars", learning_rate=0.6, weight_decay=0.1, momentum=0.8, trust=0.02)
    optimizer = optim.build(config, [weight])
    w, moved = np.ones(shape), np.zeros(shape)
    rng = np.random.default_rng(0)
    for lr in (0.6, 0.6, 0.3):
        g = rng.normal(size=shape)
        scaled = g
        if kind == "matrix":
            scaled = g + 0.1 * w
            scaled = scaled * 0.02 * np.linalg.norm(w) / np.linalg.norm(scaled)
        moved = 0.8 * moved + scaled
        w = w - lr * moved
        optim.set_learning_rate(optimizer, lr)
        weight.grad = torch.tensor(g)
        optim.step(optimizer)
        assert weight.detach().numpy() == pytest.approx(w, rel=1e-12)


def test_lars_steps_where_a_norm_is_zero():
    """A matrix that starts at zero, or has no gradient, is not scaled by 0 or infinity."""
    zero, still = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optim.build(OptimizerConfig(kind="lars", learning_rate=1.0, weight_decay=0.0), [zero, still])
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optim.step(optimizer)
    assert torch.equal(zero.detach(), -torch.ones(2, 2)) and torch.equal(still.detach(), torch.ones(2, 2))


def test_the_kinds_defaults_are_the_published_ones():
    rmsprop = optim.build(OptimizerConfig(kind="rmsprop_tf", learning_rate=1e-3), weights()).param_groups[0]
    assert (rmsprop["decay"], rmsprop["momentum"], rmsprop["epsilon"]) == (0.9, 0.0, 1e-10)
    adam = optim.build(OptimizerConfig(kind="adam", learning_rate=1e-3), weights()).param_groups[0]
    assert (adam["betas"], adam["eps"]) == ((0.9, 0.999), 1e-8)
    sgd = optim.build(OptimizerConfig(kind="sgd", learning_rate=1e-3), weights()).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"]) == (0.0, False)
    lars = optim.build(OptimizerConfig(kind="lars", learning_rate=0.6), weights()).param_groups[0]
    assert (lars["momentum"], lars["trust"], lars["weight_decay"]) == (0.9, 0.001, 1e-6)


@every_kind
def test_every_kind_lowers_a_parabola(config):
    parameters = weights()
    optimizer = optim.build(config, parameters)

    def height():
        return sum((p**2).sum() for p in parameters)

    before = height().item()
    for _ in range(20):
        optimizer.zero_grad()
        height().backward()
        optim.step(optimizer)
    assert height().item() < before


@every_kind
def test_an_optimizer_of_a_gpu_is_restored_on_a_cpu(config):
    """On CUDA the learning rate is a tensor, and Adam is capturable; neither belongs to a training on a CPU."""
    optimizer = optim.build(config, parameters := weights())
    give_gradients(parameters, 0)
    optim.step(optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group |= {"lr": torch.tensor(0.5)} | ({"capturable": True} if "capturable" in group else {})
    restored = optim.build(config, weights())
    optim.restore(restored, state)
    for group in restored.param_groups:
        assert group["lr"] == config.learning_rate and isinstance(group["lr"], float)
        assert not group.get("capturable")


@every_kind
def test_a_step_with_its_rate_in_a_tensor_is_that_with_a_number(config):
    """On CUDA the rate is a scalar on the device."""
    ours, theirs = weights(), weights()
    first, second = optim.build(config, ours), optim.build(config, theirs)
    rate = torch.tensor(config.learning_rate)
    for group in second.param_groups:
        group["lr"] = rate
    if isinstance(second, RMSpropTF):
        second.foreach = True  # as on CUDA
    for seed, lr in enumerate((0.01, 0.02, 0.005)):
        for parameters, optimizer in ((ours, first), (theirs, second)):
            optim.set_learning_rate(optimizer, lr)
            give_gradients(parameters, seed)
            optim.step(optimizer, skip=torch.tensor(seed == 1))
        assert second.param_groups[0]["lr"] is rate and rate.item() == pytest.approx(lr)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@every_kind
def test_no_optimizer_makes_the_host_wait(config):
    optimizer = optim.build(config, parameters := weights())
    give_gradients(parameters, 0)
    optim.step(optimizer, skip=torch.tensor(False))  # the first step makes the state
    skip = torch.tensor(True)
    assert host_looks(lambda: optim.step(optimizer, skip=skip)) == {}


@every_kind
def test_an_optimizers_state_survives_save_and_load(config):
    ours, theirs = weights(), weights()
    first, second = optim.build(config, ours), optim.build(config, theirs)
    for seed in range(3):
        give_gradients(ours, seed)
        optim.step(first)
    optim.restore(second, copy.deepcopy(first.state_dict()))
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    for parameters, optimizer in ((ours, first), (theirs, second)):
        give_gradients(parameters, 9)
        optim.step(optimizer)
    assert_bitwise_equal(snapshot(ours, first), snapshot(theirs, second))


# Skipping


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("steps_before", [1, 3])
@every_kind
def test_a_skipped_step_leaves_weights_and_state_bit_for_bit(config, steps_before, foreach):
    parameters = weights()
    optimizer = optim.build(config, parameters)
    if isinstance(optimizer, RMSpropTF):
        optimizer.foreach = foreach  # True is the way on CUDA, False the way on a CPU
    for seed in range(steps_before):
        give_gradients(parameters, seed)
        optim.step(optimizer, skip=torch.tensor(False))
    before = snapshot(parameters, optimizer)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, torch.nan)
    optim.step(optimizer, skip=torch.tensor(True))
    assert_bitwise_equal(snapshot(parameters, optimizer), before)


@pytest.mark.parametrize("foreach", [False, True])
@every_kind
def test_a_skipped_first_step_leaves_no_trace_in_the_second(config, foreach):
    ours, theirs = weights(), weights()
    first, second = optim.build(config, ours), optim.build(config, theirs)
    for optimizer in (first, second):
        if isinstance(optimizer, RMSpropTF):
            optimizer.foreach = foreach
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, torch.inf)
    optim.step(first, skip=torch.tensor(True))
    for parameters, optimizer in ((ours, first), (theirs, second)):
        give_gradients(parameters, 5)
        optim.step(optimizer)
    assert_bitwise_equal(snapshot(ours, first), snapshot(theirs, second))


@pytest.mark.parametrize("foreach", [False, True])
@every_kind
def test_a_step_that_is_not_skipped_is_a_plain_step(config, foreach):
    ours, theirs = weights(), weights()
    first, second = optim.build(config, ours), optim.build(config, theirs)
    for optimizer in (first, second):
        if isinstance(optimizer, RMSpropTF):
            optimizer.foreach = foreach
    for seed in range(3):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        optim.step(first, skip=torch.tensor(False))
        optim.step(second)
    assert_bitwise_equal(snapshot(ours, first), snapshot(theirs, second))


# Schedules


def rate_at(config, examples_seen, total_examples):
    return learning_rate_at(config.schedule, config.learning_rate, examples_seen, total_examples)


def config_with(learning_rate=0.01, **schedule):
    return OptimizerConfig(kind="adam", learning_rate=learning_rate, schedule=ScheduleConfig(**schedule))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.01), (3906, 0.01), (3907, 0.0095), (7812, 0.0095), (7813, 0.009025)]
)
def test_the_staircase_falls_at_the_published_steps(step, expected):
    """Decay 0.95 every 4,000,000 examples, batches of 1024."""
    config = config_with(kind="staircase", decay=0.95, decay_examples=4_000_000)
    assert rate_at(config, step * 1024, 10**8) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.03), (50, 0.0256066), (100, 0.015), (150, 0.0043934), (200, 0.0)]
)
def test_cosine_is_mocos(epoch, expected):
    assert rate_at(config_with(0.03, kind="cosine"), epoch, 200) == pytest.approx(expected, abs=1e-7)


def test_cosine_ends_at_its_final_fraction_and_stays_there():
    config = config_with(kind="cosine", final=0.1)
    assert rate_at(config, 1000, 1000) == rate_at(config, 1500, 1000) == pytest.approx(0.001)


@pytest.mark.parametrize("kind", ["constant", "staircase", "cosine"])
def test_warm_up_rises_linearly_from_zero_to_the_peak(kind):
    config = config_with(kind=kind, warmup=0.2)
    rates = [rate_at(config, seen, 1000) for seen in (0, 50, 100, 200)]
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.01])


def test_cosine_spans_what_the_warm_up_leaves():
    config = config_with(kind="cosine", warmup=0.2)
    assert rate_at(config, 600, 1000) == pytest.approx(0.005)
    assert rate_at(config, 1000, 1000) == pytest.approx(0.0)


def test_the_constant_schedule_is_constant():
    assert {rate_at(config_with(), seen, 10) for seen in (0, 5, 10, 99)} == {0.01}


# Clipping


def clipped(config, *gradients):
    parameters = [torch.nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    optim.clip(parameters, config)
    return [p.grad.tolist() for p in parameters]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [[3, 4], [0.6, 0.8]]),
        ("per_variable", [[0.6, 0.8], [0.6, 0.8]]),
        ("global", [[0.588, 0.784], [0.118, 0.157]]),
    ],
)
def test_clipping_of_the_published_example(kind, expected):
    found = clipped(ClipConfig(kind=kind, norm=1.0), [3.0, 4.0], [0.6, 0.8])
    assert np.array(found) == pytest.approx(np.array(expected), abs=5e-4)


@pytest.mark.parametrize("kind", ["per_variable", "global"])
def test_clipping_leaves_small_and_zero_gradients_alone(kind):
    assert clipped(ClipConfig(kind=kind, norm=10.0), [3.0, 4.0], [0.0, 0.0]) == [[3.0, 4.0], [0.0, 0.0]]


def test_clipping_passes_over_parameters_without_a_gradient():
    optim.clip([torch.nn.Parameter(torch.zeros(2))], ClipConfig(kind="global"))


# Configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "adam", "momentum": 0.9}, "momentum has no effect on adam"),
        ({"kind": "adam", "decay": 0.9}, "decay has no effect on adam"),
        ({"kind": "sgd", "epsilon": 1e-8}, "epsilon has no effect on sgd"),
        ({"kind": "rmsprop_tf", "beta1": 0.9}, "beta1 has no effect on rmsprop_tf, which has decay, momentum, epsilon"),
        ({"kind": "adam", "nesterov": True}, "nesterov needs sgd with a momentum"),
        ({"kind": "sgd", "nesterov": True}, "nesterov needs sgd with a momentum"),
        ({"kind": "adam", "beta2": 1.0}, r"beta2 must be in \[0, 1\), but got 1.0"),
        ({"kind": "adam", "epsilon": 0.0}, r"epsilon must be from 1e-30 to 1e\+06, but got 0.0"),
        ({"kind": "sgd", "trust": 0.1}, "trust has no effect on sgd"),
        ({"kind": "lars", "trust": 0.0}, r"trust must be from 1e-30 to 1e\+06, but got 0.0"),
        ({"kind": "adam", "learning_rate": 0.0}, r"learning_rate must be from 1e-30 to 1e\+38, but got 0.0"),
        ({"kind": "adam", "learning_rate": math.nan}, r"learning_rate must be from 1e-30 to 1e\+38, but got nan"),
        ({"kind": "lion"}, "kind must be one of rmsprop_tf, adam, adamw, sgd, lars, but got 'lion'"),
    ],
)
def test_settings_without_effect_or_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**{"learning_rate": 0.01} | settings)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (ScheduleConfig, {"decay": 0.0}),
        (ScheduleConfig, {"decay_examples": 0}),
        (ScheduleConfig, {"final": 1.5}),
        (ScheduleConfig, {"warmup": 1.0}),
        (ClipConfig, {"norm": 0.0}),
    ],
)
def test_schedules_and_clipping_out_of_range_are_refused(config, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} must be .*, but got {value}"):
        config(**settings)


def test_a_schedule_needs_examples():
    with pytest.raises(ValueError, match="total_examples >= 1, but got 0 and 0"):
        rate_at(config_with(), 0, 0)


@every_kind
def test_configuration_survives_asdict_through_pydantic(config):
    pydantic = pytest.importorskip("pydantic")
    assert pydantic.TypeAdapter(OptimizerConfig).validate_python(dataclasses.asdict(config)) == config
