"""What to try next: a searcher of Ray Tune that gives out the trials of the journal, and then new ones.

A suggestion is on the disk, in the journal, before a trial receives it. After a resume unfinished trials are returned
first under their own numbers and ids, and the next suggestions are those of a search that was not interrupted. (This
holds for one trial at a time; of several, the order in which they report decides.)
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from tuner.config.experiment import Experiment
from tuner.search.sampling.suggestions import Suggestions
from tuner.search.stopper import StopRule
from tuner.storage import searches
from tuner.storage.journal import Journal, SearchHistory, TrialHistory, Unsaved
from tuner.training.state import SCORE


class JournaledSearch(Unsaved, Searcher):
    """Proposes the trials of an experiment. A configuration is {trial_id, number, values}."""

    def __init__(
        self,
        experiment: Experiment,
        journal: Journal,
        concurrency: Callable[[], int],
        stop: StopRule,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Fill the study from the journal.

        Args:
            experiment: its space and sampler.
            journal: of the search, open.
            concurrency: how many trials may exist at a time (tuner/search/concurrency.py); where it is more than one,
                TPE avoids the values of those that are still running.
            stop: ends the search; once it has ended, only its best trial is still to be scored.
            poll: carries out what the user asks for. Where no trial runs, Tune calls nothing but `suggest`.
        """
        super().__init__(metric=SCORE, mode="max")
        assert journal.search is not None
        self._experiment, self._journal, self._concurrency, self._stop = experiment, journal, concurrency, stop
        self._poll = poll
        self.suggestions = Suggestions(experiment, journal.search, parallel=concurrency() > 1)
        self._given: dict[str, str] = {}  # the ids in the journal of the trials that Tune has, by Tune's id
        self._waiting = deque(journal.search.unfinished)
        self._lost: list[str] = []  # trials that have ended for Tune with an error
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
        self._poll()
        if search.paused:  # Tune asks the stop rule only where a trial runs
            return Searcher.FINISHED if self._stop.stop_all() else None
        if len(self._given) >= self._concurrency():
            return None
        self._take_back_lost(search)
        if not self._stop.trains:
            return self._scoring()
        while self._waiting:
            history = self._waiting.popleft()
            if history.status == "running":  # else the user has dropped it
                return self._give(trial_id, history)
        number = len(search.trials)
        if number >= search.planned or self._stop.exhausted:
            return self._scoring()
        id = searches.trial_id(search.id, number)
        suggestion = self.suggestions.next(id, number)
        if suggestion is None:
            self._stop.exhausted = True
            return self._scoring()
        settings = self._experiment.space.settings(suggestion.values)
        with self._stop.halting():
            self._journal.append("suggested", number=number, id=id, settings=settings, **asdict(suggestion))
        return self._give(trial_id, search.trials[id]) if id in search.trials else None

    def _give(self, trial_id: str, history: TrialHistory) -> dict[str, Any]:
        self._given[trial_id] = history.id
        return {
            "trial_id": history.id,
            "number": history.number,
            "values": history.values,
            "failures": history.failures,
        }

    def _take_back_lost(self, search: SearchHistory) -> None:
        """Let the trials whose slot was lost wait for another one, unless they have failed."""
        self._waiting.extend(search.trials[id] for id in self._lost if search.trials[id].status == "running")
        self._lost.clear()

    def _scoring(self) -> Any:
        """The last thing to do: to score the best trial, on a slot that has trained."""
        search = self._journal.search
        assert search is not None
        if self._given:
            return None  # one of the trials that still run may be the best
        if self._scored or not search.finished or search.best_is_scored:
            return Searcher.FINISHED
        self._scored, self._stop.trains = True, False
        return {"trial_id": search.finished[0].id, "score": True}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that Tune has ended a trial. Tune calls the recorder next, and then the journal says how it ended."""
        id = self._given.pop(trial_id, None)
        if id is not None and error:
            self._lost.append(id)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the searcher's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the journal is the searcher's state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing into Tune's snapshot: the journal is the searcher's state."""
