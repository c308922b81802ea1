"""What to try next: a searcher of Ray Tune over an Optuna study, with the journal as its memory.

A suggestion is on the disk, in the journal, before a trial receives it. After a resume the study is filled with the
journal's trials, results and sampler state, unfinished trials are returned first under their own numbers and ids, and
every sampler is seeded by the number of the trial: the next suggestions are those of a search that was not interrupted.
(This holds for one trial at a time; of several, the order in which they report decides.)
"""

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tuner.config.experiment import Experiment
from tuner.config.space import Choice, Number
from tuner.search.optuna_internals import StudyState, readable_state
from tuner.search.samplers import Study, is_exhaustive, make_sampler, planned_values
from tuner.search.stopper import StopRule
from tuner.storage.journal import Journal, SearchHistory, TrialHistory, Unsaved
from tuner.training.state import SCORE


class JournaledSearch(Unsaved, Searcher):
    """Proposes the trials of an experiment. A configuration is {trial_id, number, values}."""

    def __init__(
        self, experiment: Experiment, journal: Journal, concurrency: Callable[[], int], stop: StopRule
    ) -> None:
        """Fill the study from the journal.

        Args:
            experiment: its space and sampler.
            journal: of the search, open.
            concurrency: how many trials may exist at a time (tuner/search/concurrency.py); where it is more than one,
                TPE avoids the values of those that are still running.
            stop: ends the search; once it has ended, only its best trial is still to be scored.
        """
        super().__init__(metric=SCORE, mode="max")
        self._experiment, self._journal, self._concurrency, self._stop = experiment, journal, concurrency, stop
        self._parallel = concurrency() > 1
        self._numbers: dict[str, int] = {}  # of the trials that were suggested and have not ended, by Tune's id
        storage = InMemoryStorage()
        self.study = Study.create(storage)
        self._state = StudyState(storage, self.study)
        search = journal.search
        assert search is not None
        self._state.restore(search.study_state)
        for history in search.trials.values():
            self.study.add_trial(self._frozen(history))
        self._waiting = deque(search.unfinished)
        self._lost: list[int] = []  # numbers of trials that have ended for Tune with an error
        self._scored = False  # whether a slot was asked to score the best trial

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Decline Tune's own search space; this searcher has the experiment's."""
        return False

    def suggest(self, trial_id: str) -> Any:
        """The next configuration; None: not now, Tune asks again; FINISHED: all planned trials are suggested.

        Args:
            trial_id: Tune's id of the trial; the id of the journal is in the configuration.
        """
        search = self._journal.search
        assert search is not None
        if len(self._numbers) >= self._concurrency():
            return None
        self._take_back_lost(search)
        if not self._stop.trains:
            return self._scoring()
        if self._waiting:
            history = self._waiting.popleft()
            self._numbers[trial_id] = history.number
            return _configuration(history)
        number = len(search.trials)
        of_a_grid = is_exhaustive(self._experiment) and number >= len(self._experiment.space.grid)
        if number >= search.planned or of_a_grid or self.study.exhausted:
            return self._scoring()
        self.study.sampler = make_sampler(self._experiment, number, parallel=self._parallel)
        fixed = planned_values(self._experiment, number)
        if fixed is not None:
            self.study.enqueue_trial(fixed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # samplers warn of what they draw at random; --dry-run prints it once
            values = self._experiment.space.optuna(self.study.ask())
        id = f"{search.id}-{number:04d}"
        with self._stop.halting():
            self._journal.append(
                "suggested",
                number=number,
                id=id,
                values=values,
                settings=self._experiment.space.settings(values),
                sampler_state=self.study.get_trials(deepcopy=False)[number].system_attrs,
                study_state=self._state.read(),
            )
        if id not in search.trials:
            return None
        self._numbers[trial_id] = number
        return _configuration(search.trials[id])

    def _take_back_lost(self, search: SearchHistory) -> None:
        """Let the trials whose slot was lost wait for another one, unless they have failed."""
        for number in self._lost:
            history = list(search.trials.values())[number]
            if history.status == "running":
                self._waiting.append(history)
            else:
                self.study.tell(number, state=TrialState.FAIL)
        self._lost.clear()

    def _scoring(self) -> Any:
        """The last thing to do: to score the best trial, on a slot that has trained."""
        search = self._journal.search
        assert search is not None
        if self._numbers:
            return None  # one of the trials that still run may be the best
        if self._scored or not search.finished or search.best_is_scored:
            return Searcher.FINISHED
        self._scored, self._stop.trains = True, False
        return {"trial_id": search.finished[0].id, "score": True}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Give Optuna the score of a trial: the best GAP of its epochs. A failed trial has none, and no bad score."""
        score = None if error or not result or "error" in result else result.get(self.metric)
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        if error:
            self._lost.append(number)  # the recorder, which Tune calls next, says whether it has failed
        elif score is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, score)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the searcher's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the journal is the searcher's state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing into Tune's snapshot: the journal is the searcher's state."""

    def _frozen(self, history: TrialHistory) -> optuna.trial.FrozenTrial:
        """A trial of the journal as Optuna stores it."""
        state = {"running": TrialState.RUNNING, "failed": TrialState.FAIL, "finished": TrialState.COMPLETE}[
            history.status
        ]
        if state == TrialState.COMPLETE and history.score is None:
            state = TrialState.FAIL
        return optuna.trial.create_trial(
            state=state,
            value=history.score if state == TrialState.COMPLETE else None,
            params=history.values,
            distributions={
                name: optuna_distribution(distribution)
                for name, distribution in self._experiment.space.distributions(history.values).items()
            },
            system_attrs=readable_state(history.sampler_state),
        )


def optuna_distribution(distribution: Number | Choice) -> BaseDistribution:
    """A distribution of the search space as an Optuna distribution."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.labels)
    if distribution.integer:
        step = 1 if distribution.step is None else int(distribution.step)
        return IntDistribution(int(distribution.low), int(distribution.high), log=distribution.log, step=step)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _configuration(history: TrialHistory) -> dict[str, Any]:
    return {
        "trial_id": history.id,
        "number": history.number,
        "values": history.values,
        "failures": history.failures,
    }
