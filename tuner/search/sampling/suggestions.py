"""Draws the values of the next trial: an Optuna study over the trials of the journal.

What is drawn depends on the seed, the number of the trial and the journal alone, so a resumed search draws what an
uninterrupted one would. No configuration is tried twice with the same seed: a draw that repeats one stays in the study
without a score, as a failed one, and the sampler draws again.

A trial that its own settings made fail counts as worse than every score, so that the sampler leaves this part of the
space. A trial whose workers were killed says nothing about its settings, and may be drawn again.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from tuner.config.experiment import Experiment
from tuner.config.space import Choice, Number, Space, Values
from tuner.search.sampling.optuna_internals import StudyState, readable_state
from tuner.search.sampling.samplers import SAMPLERS, make_sampler, seed_of
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.training.config import trial_seed

# When a sampler draws nothing new, so many configurations are drawn at random before the search ends.
RANDOM_DRAWS = 2_000

# Values, and the seed that a trial with them trains with.
Configuration = tuple[frozenset[tuple[str, Any]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """The values of a trial, and what the sampler is to find again after a resume."""

    values: dict[str, Any]
    place: int  # of the trial in the study, which also holds draws that were not tried
    sampler_state: dict[str, Any]  # what the sampler stored with the trial
    study_state: dict[str, Any]  # what it stored with the study


class Suggestions:
    """Draws trials, and learns from those that have ended."""

    def __init__(self, experiment: Experiment, search: SearchHistory, *, parallel: bool = False) -> None:
        """Fill the study from the journal.

        Args:
            experiment: its space and sampler.
            search: the journal of the search, which grows.
            parallel: whether trials run at the same time; TPE then avoids the values of those that still run.
        """
        self._experiment, self._search, self._parallel = experiment, search, parallel
        storage = InMemoryStorage()
        self.study = optuna.create_study(storage=storage, direction="maximize", pruner=optuna.pruners.NopPruner())
        self._state = StudyState(storage, self.study)
        self._state.restore(search.study_state)
        self._running: dict[
            str, tuple[int, Configuration]
        ] = {}  # trials without a score in the study, by id: place and key
        self._tried: set[Configuration] = set()
        for taught in search.taught:
            self._add(taught["values"], -inf if taught["score"] is None else taught["score"])
            self._tried.add(self._key(taught["values"], taught["number"]))
        for history in search.trials.values():
            self._replay(history)
        self._suggested = {frozenset(history.values.items()) for history in search.trials.values()}
        self._planned = deque(experiment.planned)
        self._queued = 0  # of search.queued, those that are among the planned

    def next(self, id: str, number: int) -> Suggestion | None:
        """Draw the next trial. The caller writes it into the journal before it asks for another one.

        Args:
            id: of the trial.
            number: of the trial.

        Returns:
            None: everything has been tried.
        """
        self._learn()
        for values, place in self._draws(number):
            key = self._key(values, number)
            if key not in self._tried:
                if place is None:
                    place = self._add(values, running=True)
                self._tried.add(key)
                self._running[id] = place, key
                attributes = self.study.get_trials(deepcopy=False)[place].system_attrs
                return Suggestion(values=values, place=place, sampler_state=attributes, study_state=self._state.read())
            if place is not None:
                self.study.tell(place, state=TrialState.FAIL)
        return None

    def _draws(self, number: int) -> Iterator[tuple[dict[str, Any], int | None]]:
        """Values to try, the best choice first, with their place in the study where they have one."""
        self._planned.extend(self._search.queued[self._queued :])
        self._queued = len(self._search.queued)
        while self._planned:
            values = self._planned.popleft()
            if frozenset(values.items()) not in self._suggested:
                yield values, None
        sampler, space = SAMPLERS[self._experiment.search.sampler.kind], self._experiment.space
        for draw in range(sampler.draws):
            self.study.sampler = make_sampler(self._experiment, number, draw=draw, parallel=self._parallel)
            yield _ask(self.study, space)
        if sampler.draws:
            seed = seed_of(self._experiment, number)
            yield from ((values, None) for values in _finite(space, seed) or _at_random(space, seed))

    def _learn(self) -> None:
        """Give the study the scores of the trials that have ended since the last suggestion."""
        for id, (place, key) in list(self._running.items()):
            history = self._search.trials.get(id)
            if history is None or history.status == "running":
                continue
            del self._running[id]
            score = _score(history)
            self.study.tell(place, score, state=None if score is not None else TrialState.FAIL)
            if score is None:
                self._tried.discard(key)

    def _replay(self, history: TrialHistory) -> None:
        """Put a trial of the journal into the study, at the place that it had there."""
        while len(self.study.get_trials(deepcopy=False)) < (history.place or 0):
            self.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
        key, running, score = self._key(history.values, history.number), history.status == "running", _score(history)
        attributes = readable_state(history.sampler_state)
        place = self._add(history.values, score, running=running, attributes=attributes)
        if running:
            self._running[history.id] = place, key
        if running or score is not None:
            self._tried.add(key)

    def _add(
        self,
        values: Values,
        score: float | None = None,
        *,
        running: bool = False,
        attributes: dict[str, Any] | None = None,
    ) -> int:
        """Add a trial to the study that no sampler has drawn in this process; returns its place."""
        place = len(self.study.get_trials(deepcopy=False))
        distributions = self._experiment.space.distributions(values)
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING if running else TrialState.FAIL if score is None else TrialState.COMPLETE,
                value=score,
                params=dict(values),
                distributions={name: optuna_distribution(one) for name, one in distributions.items()},
                system_attrs=attributes,
            )
        )
        return place

    def _key(self, values: Values, number: int) -> Configuration:
        return configuration(self._experiment, values, number)


def configuration(experiment: Experiment, values: Values, number: int) -> Configuration:
    """What two trials must have in common to be the same training: their values, and their seed."""
    # Optuna draws 0.30000000000000004 where a grid has 0.3.
    exact = {name: float(f"{one:.12g}") if isinstance(one, float) else one for name, one in values.items()}
    return frozenset(exact.items()), trial_seed(experiment.space.setting(values, "training.seed"), number)


def optuna_distribution(distribution: Number | Choice) -> BaseDistribution:
    """A distribution of the search space as an Optuna distribution."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.labels)
    if distribution.integer:
        step = 1 if distribution.step is None else int(distribution.step)
        return IntDistribution(int(distribution.low), int(distribution.high), log=distribution.log, step=step)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _score(history: TrialHistory) -> float | None:
    """What the sampler learns from a trial that has ended: its score, minus infinity, or nothing."""
    return -inf if history.failed_by_settings else history.score if history.status == "finished" else None


def _ask(study: optuna.Study, space: Space) -> tuple[dict[str, Any], int]:
    """What the study's sampler draws, and its place in the study."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samplers warn of what they draw at random; --dry-run prints it once
        asked = study.ask()
        return space.optuna(asked), asked.number


def _finite(space: Space, seed: int) -> list[dict[str, Any]]:
    """All combinations of a space in random order; none where there are too many to list."""
    try:
        return Random(seed).sample(space.grid, len(space.grid))
    except ValueError:
        return []


def _at_random(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    for _ in range(RANDOM_DRAWS):
        yield _ask(study, space)[0]
