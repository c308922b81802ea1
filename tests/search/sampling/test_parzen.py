"""TPE with our own densities suggests what Optuna's sampler does, in any space and after any trials."""

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.search.sampling.parzen import Parzen
from tuner.search.sampling.tpe import RecentTPE

DISTRIBUTIONS: list[BaseDistribution] = [
    FloatDistribution(-1, 3),
    FloatDistribution(1e-5, 1e2, log=True),
    FloatDistribution(0, 1, step=0.1),
    IntDistribution(2, 9),
    IntDistribution(0, 1_000_000, step=2),
    IntDistribution(1, 4096, log=True),
    CategoricalDistribution(["a", "b", "c"]),
    CategoricalDistribution(["x", "y"]),
    CategoricalDistribution(["only"]),
]


def suggest(study: optuna.Study, space: dict[str, BaseDistribution]) -> optuna.Trial:
    """A trial with all parameters; the last one exists for one option of a choice alone."""
    trial = study.ask(dict(space, choice=CategoricalDistribution(["0", "more"])))
    if trial.params["choice"] == "more":
        trial.suggest_float("conditional", 10, 1000, log=True)
    return trial


def trials_of(space: dict[str, BaseDistribution], finished: int, running: int, seed: int) -> list[FrozenTrial]:
    draw, rng, trials = optuna.create_study(sampler=RandomSampler(seed=seed)), np.random.default_rng(seed), []
    for ended in rng.permutation([True] * finished + [False] * running):
        trial = suggest(draw, space)
        score = rng.choice([float("-inf"), round(rng.normal(), 1), rng.normal()])  # some failed, some tie
        trials.append(
            create_trial(
                params=trial.params,
                distributions=trial.distributions,
                state=TrialState.COMPLETE if ended else TrialState.RUNNING,
                value=score if ended else None,
            )
        )
    return trials


def next_after(trials: list[FrozenTrial], sampler: BaseSampler, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return suggest(study, space).params


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two suggestions differ in the last digits alone."""
    return ours == {name: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for name, v in theirs.items()}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(DISTRIBUTIONS), min_size=1, max_size=5),
    st.integers(0, 120),
    st.integers(0, 20),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_it_suggests_what_optuna_does(
    distributions: list[BaseDistribution], finished: int, running: int, seed: int, liar: bool
) -> None:
    space = {f"p{number}": distribution for number, distribution in enumerate(distributions)}
    trials = trials_of(space, finished, running, seed)
    ours = next_after(trials, RecentTPE(["conditional"], seed=seed, constant_liar=liar), space)
    theirs = next_after(trials, TPESampler(seed=seed, constant_liar=liar), space)
    assert same(ours, theirs)


def test_a_density_sums_to_one() -> None:
    space = [IntDistribution(1, 6), CategoricalDistribution(["a", "b", "c"])]
    density = Parzen(space, np.array([[2.0, 2.0, 5.0], [0.0, 2.0, 2.0]]))
    points = np.array([[number, option] for number in range(1, 7) for option in range(3)], float).T
    relative = np.exp(density.log_density(points))
    drawn = density.sample(np.random.RandomState(1), 40_000)
    counts = [(drawn == point[:, None]).all(axis=0).sum() for point in points.T]
    assert sum(counts) == 40_000, "a point outside of the space"
    np.testing.assert_allclose(counts / np.sum(counts), relative / relative.sum(), atol=0.01)


def test_it_suggests_what_optuna_does_for_an_option_that_no_trial_has() -> None:
    space = {"p0": DISTRIBUTIONS[0]}
    trials = [trial for trial in trials_of(space, 60, 0, 1) if trial.params["choice"] == "0"]
    drawn = 0
    for seed in range(30):
        ours = next_after(trials, RecentTPE(["conditional"], seed=seed, constant_liar=True), space)
        assert same(ours, next_after(trials, TPESampler(seed=seed, constant_liar=True), space))
        drawn += "conditional" in ours
    assert drawn
