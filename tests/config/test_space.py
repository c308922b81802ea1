"""The search space: names, defaults, sampling, corners, and what samplers cannot take."""

import math
import pickle
import random
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config.distributions import DISTRIBUTIONS
from tuner.config.space import MAX_COMBINATIONS, Choice, Number, Space
from tuner.config.yaml_tree import dump, parse
from tuner.errors import ConfigError
from tuner.training.config import flatten


def space(text: str) -> Space:
    return Space.build(parse(text, "experiments.yaml"))


CONDITIONAL = """
loss:
  l1: {choice: [0, {loguniform: [1.0e-3, 10]}]}
  bootstrap: {choice: [none, per_batch]}
optimizer:
  choice:
    - {kind: adam, learning_rate: {loguniform: [1e-4, 1e-2]}}
    - {kind: sgd, learning_rate: {loguniform: [1e-3, 1]}, momentum: {choice: [0, {uniform: [0.5, 0.9]}]}}
"""


class Random:
    """An `Ask` that draws at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self, name: str, distribution: Number) -> float:
        if distribution.integer or distribution.step is not None:
            step = distribution.step or 1
            steps = math.floor((distribution.high - distribution.low) / step + 1e-9)
            return distribution.low + step * self.random.randint(0, steps)
        return self.random.uniform(distribution.low, distribution.high)

    def category(self, name: str, labels: Any) -> str:
        return str(self.random.choice(labels))


def test_parameters_are_named_by_their_yaml_paths_and_options_by_their_labels() -> None:
    found = space(CONDITIONAL)
    assert found.names() == [
        "loss.l1",
        "loss.l1.loguniform",
        "loss.bootstrap",
        "optimizer",
        "optimizer.adam.learning_rate",
        "optimizer.sgd.learning_rate",
        "optimizer.sgd.momentum",
        "optimizer.sgd.momentum.uniform",
    ]
    assert found.conditional_names() == [
        "loss.l1.loguniform",
        "optimizer.adam.learning_rate",
        "optimizer.sgd.learning_rate",
        "optimizer.sgd.momentum",
        "optimizer.sgd.momentum.uniform",
    ]


def test_a_conditional_value_is_resolved_to_the_setting_itself() -> None:
    found = space(CONDITIONAL)
    values = {
        "loss.l1": "loguniform",
        "loss.l1.loguniform": 0.5,
        "loss.bootstrap": "none",
        "optimizer": "sgd",
        "optimizer.sgd.learning_rate": 0.1,
        "optimizer.sgd.momentum": "0",
    }
    assert found.resolve(values) == {
        "loss": {"l1": 0.5, "bootstrap": "none"},
        "optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0},
    }


def test_two_distributions_in_one_choice_have_different_labels() -> None:
    found = space("a: {choice: [{uniform: [0, 1]}, {uniform: [5, 6]}, 0.5, true, null, none, '0.5x']}")
    assert found.distributions({"a": "true"}) == {
        "a": Choice(labels=("uniform", "uniform_2", "0.5", "true", "null", "none", "0.5x"), default="uniform")
    }
    assert found.names() == ["a", "a.uniform", "a.uniform_2"]


def test_a_block_without_a_kind_is_labelled_by_its_text() -> None:
    found = space("towers: {choice: [{rgb: 8, audio: 4}, {rgb: 16, audio: 4}]}")
    assert [found.resolve(corner)["towers"]["rgb"] for corner in found.corners()] == [8, 16]
    assert found.defaults() == {"towers": "rgb: 8, audio: 4"}


@pytest.mark.parametrize(
    ("written", "default"),
    [
        ("{uniform: [0.2, 0.7]}", 0.45),
        ("{uniform: [0.2, 0.7], default: 0.5}", 0.5),
        ("{loguniform: [1e-4, 1e-2]}", 0.001),
        ("{quniform: [0.4, 0.7, 0.1]}", 0.5),
        ("{int: [8, 12]}", 10),
        ("{int: [8, 11]}", 9),
        ("{int: [128, 512, 128]}", 256),
        ("{logint: [1, 64]}", 8),
        ("{choice: [3, 4]}", "3"),
        ("{choice: [3, 4], default: 4}", "4"),
        ("{choice: [3, {uniform: [0, 1]}], default: uniform}", "uniform"),
        ("{choice: [{kind: a, x: 1}, {kind: b}], default: {kind: b}}", "b"),
    ],
)
def test_trial_0_has_the_default_or_the_middle(written: str, default: Any) -> None:
    found = space(f"x: {written}")
    assert found.defaults()["x"] == default
    assert type(found.defaults()["x"]) is type(default)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{uniform: [0.7, 0.2]}", "x: the low end must be below the high end, but got [0.7, 0.2]"),
        ("{uniform: [1, 1]}", "x: the low end must be below the high end, but got [1.0, 1.0]"),
        ("{loguniform: [0, 1]}", "x: a log scale must start above 0, but got [0.0, 1.0]"),
        ("{logint: [-1, 4]}", "x: a log scale must start above 0, but got [-1, 4]"),
        ("{uniform: [0, .inf]}", "x: both ends must be finite, but got [0.0, .inf]"),
        ("{uniform: [0, .nan]}", "x: both ends must be finite, but got [0.0, .nan]"),
        ("{uniform: [0, true]}", "x: uniform takes numbers: each end must be a number (got true)"),
        ("{uniform: [0, '1']}", "x: uniform takes numbers: each end must be a number (got '1')"),
        ("{uniform: 3}", "x: uniform takes [low, high] (got 3)"),
        ("{uniform: [1, 2, 3]}", "x: uniform takes [low, high] (got [1, 2, 3])"),
        ("{quniform: [1, 2]}", "x: quniform takes [low, high, step] (got [1, 2])"),
        ("{quniform: [0, 1, 0.3]}", "x: the range must be a multiple of the step 0.3, but got [0.0, 1.0]"),
        ("{quniform: [0, 1, 0]}", "x: the step must be above 0, but got 0.0"),
        ("{int: [1, 2.5]}", "x: int takes whole numbers (got [1, 2.5])"),
        ("{uniform: [0, 1], default: 2}", "x: the default must lie in the range, but got 2"),
        ("{uniform: [0, 1], default: half}", "x: the default must be a number (got half)"),
        ("{int: [0, 4], default: 1.5}", "x: the default must lie in the range, but got 1.5"),
        ("{uniform: [0, 1], log: true}", "x: uniform takes no other key than default (got 'log')"),
        ("{uniform: [0, 1], int: [0, 1]}", "x: uniform takes no other key than default (got 'int')"),
        ("{choice: []}", "x: choice takes a list of at least one option (got [])"),
        ("{choice: 3}", "x: choice takes a list of at least one option (got 3)"),
        ("{choice: [1, 2, 1]}", "x: choice offers 1 twice"),
        ("{choice: [1, 2], default: 3}", "x: the default must be one of the options 1, 2 (got 3)"),
        ("{choice: [1, {uniform: [2, 1]}]}", "x.uniform: the low end must be below the high end, but got [2.0, 1.0]"),
        ("[1, {int: [1, 2]}]", "x.1: a list cannot hold a distribution; write a choice of lists instead"),
        (".nan", "x: must be a finite number (got .nan)"),
    ],
)
def test_the_error_of_a_distribution_names_its_line(written: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space(f"# a comment\nx: {written}")
    assert str(raised.value) == f"experiments.yaml:2: {message}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "loss.l1: no value for this parameter"),
        ({"loss.l1": "1"}, "loss.l1: '1' is not one of: 0, loguniform"),
        ({"loss.l1": "loguniform"}, "loss.l1.loguniform: no value for this parameter"),
        ({"loss.l1": "loguniform", "loss.l1.loguniform": 11}, "loss.l1.loguniform: not in [0.001, 10.0] (got 11)"),
        ({"loss.l1": "loguniform", "loss.l1.loguniform": True}, "loss.l1.loguniform: not in [0.001, 10.0] (got true)"),
        ({"loss.l1": "0", "loss.l2": 1}, "loss.l2: is not a parameter of this configuration; did you mean 'loss.l1'?"),
        ({"loss.l1": "0", "loss.l1.loguniform": 1}, "loss.l1.loguniform: is not a parameter of this configuration"),
    ],
)
def test_values_that_the_space_cannot_suggest_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space("loss: {l1: {choice: [0, {loguniform: [1.0e-3, 10]}]}}").resolve(values)
    assert str(raised.value).startswith(message)


def test_the_corners_of_a_large_space_are_few_and_include_every_option() -> None:
    found = space("\n".join(f"x{i}: {{choice: [1, 2, {{choice: [3, {{int: [4, 5]}}]}}]}}" for i in range(12)))
    corners = found.corners()
    assert len(corners) <= 2 * MAX_COMBINATIONS
    for i in range(12):
        assert {found.resolve(corner)[f"x{i}"] for corner in corners} == {1, 2, 3, 4, 5}


def test_conflicts_between_two_choices_are_among_the_corners() -> None:
    found = space("a: {choice: [1, 2]}\nb: {choice: [1, 2]}")
    assert {(corner["a"], corner["b"]) for corner in found.corners()} == {(a, b) for a in "12" for b in "12"}


SCALARS = st.one_of(st.booleans(), st.none(), st.integers(-5, 5), st.sampled_from(["none", "1e-3", "no", "0", "a b"]))
NUMBERS = st.one_of(
    st.builds(lambda low, width: {"uniform": [low, low + width]}, st.integers(-3, 3), st.floats(0.1, 9)),
    st.builds(lambda low, factor: {"loguniform": [low, low * factor]}, st.floats(1e-6, 1), st.integers(2, 1000)),
    st.builds(lambda low, steps: {"quniform": [low, low + steps * 0.5, 0.5]}, st.integers(-3, 3), st.integers(1, 9)),
    st.builds(lambda low, width: {"int": [low, low + width]}, st.integers(-3, 3), st.integers(1, 9)),
    st.builds(lambda low, width: {"logint": [low, low + width]}, st.integers(1, 3), st.integers(1, 90)),
)


def blocks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.dictionaries(st.sampled_from(["a", "b", "kind"]), inner, min_size=1, max_size=3),
        st.lists(inner, min_size=1, max_size=3, unique_by=repr).map(lambda options: {"choice": options}),
    )


TREES = st.dictionaries(
    st.sampled_from(["model", "loss"]), st.recursive(st.one_of(SCALARS, NUMBERS), blocks, max_leaves=6), min_size=1
)


@settings(max_examples=150, deadline=None)
@given(tree=TREES, seed=st.integers(0, 99))
def test_every_suggestion_of_any_space_resolves_to_values_of_its_distributions(tree: dict[str, Any], seed: int) -> None:
    found = space(dump(tree))
    drawn = found.sample(Random(seed))
    for values in (drawn, found.defaults(), *found.corners()):
        in_effect = found.distributions(values)
        assert list(in_effect) == list(values)
        assert all(in_effect[name].holds(value) for name, value in values.items())
        assert set(values) <= set(found.names())
        assert not any(word in repr(found.resolve(values)) for word in DISTRIBUTIONS)
    assert len(set(found.names())) == len(found.names())
    assert pickle.loads(pickle.dumps(found)) == found


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_the_corners_of_any_space_include_both_ends_and_every_option(tree: dict[str, Any]) -> None:
    found = space(dump(tree))
    seen: dict[str, set[Any]] = {name: set() for name in found.names()}
    distributions: dict[str, Any] = {}
    for corner in found.corners():
        distributions |= found.distributions(corner)
        for name, value in corner.items():
            seen[name].add(value)
    for name, distribution in distributions.items():
        if isinstance(distribution, Choice):
            assert seen[name] == set(distribution.labels)
        else:
            assert seen[name] == {distribution.low, distribution.high}
    assert set(distributions) == set(found.names())


@settings(max_examples=100, deadline=None)
@given(tree=TREES)
def test_a_dumped_space_reads_back_to_an_equal_one(tree: dict[str, Any]) -> None:
    assert parse(dump(tree), "experiments.yaml").plain() == tree
    assert space(dump(tree)) == space(dump(space(dump(tree)).tree.plain()))


def test_optuna_suggests_only_parameters_of_the_chosen_options() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = space(CONDITIONAL + "training: {epochs: {int: [2, 6, 2]}, rate: {quniform: [0.4, 0.7, 0.1]}}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial(found.defaults())
    for number in range(20):
        trial = study.ask()
        values = found.optuna(trial)
        assert trial.params == values
        assert values == found.defaults() or number > 0
        assert found.resolve(values)["training"]["epochs"] in (2, 4, 6)
        study.tell(trial, 0.0)


def test_a_grid_has_every_combination_once_and_the_defaults_first() -> None:
    found = space(
        "a: {choice: [{kind: x, n: {int: [1, 3]}}, {kind: y}]}\nb: {quniform: [0.1, 0.3, 0.1], default: 0.3}"
    ).grid
    assert found[0] == {"a": "x", "a.x.n": 2, "b": 0.3}
    expected = [{"a": "x", "a.x.n": n, "b": b} for n in (1, 2, 3) for b in (0.1, 0.2, 0.3)]
    expected += [{"a": "y", "b": b} for b in (0.1, 0.2, 0.3)]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_an_infinite_or_too_large_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="b has infinitely many values; a grid takes choices, whole numbers and steps"):
        assert space("a: {choice: [1, 2]}\nb: {uniform: [0, 1]}").grid
    with pytest.raises(ValueError, match="a grid has at most 10,000 combinations, but the space has more"):
        assert space("a: {int: [1, 101]}\nb: {int: [1, 100]}").grid


def test_settings_that_a_kind_determines_are_not_listed_as_searched() -> None:
    kinds = "a: {choice: [{kind: x, n: 1, m: 1}, {kind: y, n: 2}]}\nb: {choice: [{c: 1}, {d: 2}]}"
    assert space(kinds).searched == ["a.kind", "a.n", "b.c", "b.d"]


def test_one_setting_is_that_of_the_whole_configuration() -> None:
    found = space(CONDITIONAL + "training: {seed: {choice: [1, per_trial]}, epochs: {int: [2, 6]}, towers: [1, 2]}")
    for values in found.corners():
        for path, value in flatten(found.resolve(values)).items():
            assert found.setting(values, path) == value, path
