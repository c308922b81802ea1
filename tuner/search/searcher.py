"""What to try next: Tune's OptunaSearch, with the journal as its memory.

A suggestion is in the journal, on the disk, before a trial hears of it. After a resume the study is filled with the
journal's trials, results and sampler state, unfinished trials are handed out first under their own numbers and ids,
and a sampler whose only memory is its random numbers is seeded by the number of the trial: the suggestions that follow
are those the uninterrupted search would have made (with one trial at a time; several report in any order).
"""

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tuner.config.experiment import Experiment
from tuner.config.space import Choice, Number
from tuner.errors import SearchError
from tuner.search.tpe import RecentTPE
from tuner.storage.journal import Journal, TrialHistory, Unsaved

optuna.logging.set_verbosity(optuna.logging.WARNING)


class JournaledSearch(Unsaved, OptunaSearch):
    """OptunaSearch over an experiment's space; configurations are {trial_id, number, values}."""

    def __init__(
        self, experiment: Experiment, journal: Journal, room: Callable[[], int], halt: Callable[[str], None]
    ) -> None:
        """Fill the study from the journal.

        Args:
            experiment: its space and sampler.
            journal: of the search, open.
            room: how many trials may be under way (tuner/search/concurrency.py); TPE keeps away from those still
            running.
            halt: ends the search for the reason it is told, where the journal takes no suggestion.
        """
        self._experiment, self._journal, self._room, self._halt = experiment, journal, room, halt
        self._parallel = room() > 1
        self._under_way: set[str] = set()  # trials that were suggested and have not ended, by Tune's name
        config = experiment.search
        super().__init__(
            space=experiment.space.optuna,
            metric=config.metric,
            mode=config.mode,
            sampler=make_sampler(experiment, 0, parallel=self._parallel),
        )
        search = journal.search
        assert search is not None
        self._restore_study_state(search.study_state)
        for record in search.trials.values():
            self._ot_study.add_trial(self._frozen(record))
        self._waiting = deque(search.unfinished)

    def suggest(self, trial_id: str) -> Any:
        """The next configuration; `trial_id` is Tune's name for it, ours is in the configuration."""
        search = self._journal.search
        assert search is not None
        if len(self._under_way) >= self._room():
            return None  # Tune asks again
        if self._waiting:
            record = self._waiting.popleft()
            self._under_way.add(trial_id)
            self._ot_trials[trial_id] = self._ot_study.get_trials(deepcopy=False)[record.number]
            return _configuration(record)
        number = len(search.trials)
        grid = self._experiment.space.grid if self._experiment.search.sampler.kind == "grid" else None
        if number >= search.planned or (grid is not None and number >= len(grid)):
            return Searcher.FINISHED
        self._ot_study.sampler = make_sampler(self._experiment, number, parallel=self._parallel)
        fixed = planned_values(self._experiment, number)
        if fixed is not None:
            self._ot_study.enqueue_trial(fixed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # samplers announce what they draw at random: --dry-run says it once
            values = super().suggest(trial_id)
        id = f"{search.id}-{number:04d}"
        try:
            self._journal.append(
                "suggested",
                number=number,
                id=id,
                values=values,
                settings=self._experiment.space.settings(values),
                sampler_state=self._ot_study.get_trials(deepcopy=False)[number].system_attrs,
                study_state=self._study_state(),
            )
        except SearchError as error:
            self._halt(str(error))
            return None
        self._under_way.add(trial_id)
        return _configuration(search.trials[id])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Tune's scheduler alone stops trials, so Optuna's pruners have no use for epochs."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna a trial's score: the best GAP of its epochs. A failed trial has none; it is not a bad score."""
        self._under_way.discard(trial_id)
        score = None if error or not result or "error" in result else result.get(self.metric)
        if trial_id in self._ot_trials and trial_id not in self._completed_trials:
            frozen = self._ot_trials[trial_id]
            if score is None:
                self._ot_study.tell(frozen.number, state=TrialState.FAIL)
            else:
                self._ot_study.tell(frozen.number, score)
            self._completed_trials.add(trial_id)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the journal is the searcher's state."""

    def _frozen(self, record: TrialHistory) -> optuna.trial.FrozenTrial:
        """A trial of the journal as Optuna stores it."""
        state = {"running": TrialState.RUNNING, "failed": TrialState.FAIL, "finished": TrialState.COMPLETE}[
            record.status
        ]
        if state == TrialState.COMPLETE and record.score is None:
            state = TrialState.FAIL
        return optuna.trial.create_trial(
            state=state,
            value=record.score if state == TrialState.COMPLETE else None,
            params=record.values,
            distributions={
                name: optuna_distribution(distribution)
                for name, distribution in self._experiment.space.distributions(record.values).items()
            },
            system_attrs=record.sampler_state,
        )

    # Optuna keeps what QMC needs (its position in the sequence) in attributes of the study that have no public name.
    def _study_state(self) -> dict[str, Any]:
        study = self._ot_study
        return dict(study._storage.get_study_system_attrs(study._study_id))

    def _restore_study_state(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            self._ot_study._storage.set_study_system_attr(self._ot_study._study_id, key, value)


def planned_values(experiment: Experiment, number: int) -> dict[str, Any] | None:
    """The values of trial `number` that no sampler draws: the defaults for the first, all of a grid."""
    if experiment.search.sampler.kind == "grid":
        return experiment.space.grid[number]
    return experiment.space.defaults() if number == 0 else None


def make_sampler(experiment: Experiment, number: int, *, parallel: bool = False) -> BaseSampler:
    """The sampler of suggestion `number`.

    All but QMC are seeded anew for each suggestion, so that it depends on the seed, the number and the results before
    it alone; QMC's seed is its scrambling, and must stay.
    """
    config = experiment.search.sampler
    seed = (config.seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.kind:
            case "tpe":
                return RecentTPE(experiment.space.conditional_names(), seed=seed, constant_liar=parallel)
            case "random" | "grid":  # of a grid, all is enqueued
                return optuna.samplers.RandomSampler(seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "qmc":
                return optuna.samplers.QMCSampler(
                    seed=config.seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
                )


def optuna_distribution(distribution: Number | Choice) -> BaseDistribution:
    """The space's distribution in Optuna's words."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.labels)
    if distribution.integer:
        step = 1 if distribution.step is None else int(distribution.step)
        return IntDistribution(int(distribution.low), int(distribution.high), log=distribution.log, step=step)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _configuration(record: TrialHistory) -> dict[str, Any]:
    return {"trial_id": record.id, "number": record.number, "values": record.values}
