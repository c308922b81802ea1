"""Records what trials do: first in the journal, then in MLflow, then on the screen; a callback of Tune."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ray.tune import Callback

from tuner.config.experiment import Experiment
from tuner.console import Console, describe_settings
from tuner.export.checkpoints import discard_training_states
from tuner.export.pruning import BestTrials
from tuner.redact import redacted
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.stopper import StopRule
from tuner.search.winner import record_scores
from tuner.storage.journal import Cause, Journal, TrialHistory, Unsaved
from tuner.tracking.records import recorded_metrics, trial_tags
from tuner.tracking.tracker import Tracker
from tuner.training.config import flatten
from tuner.workers.messages import epochs_of, too_often


def _halting(method: Callable[..., None]) -> Callable[..., None]:
    """End the search in order where the storage cannot be used; after a fatal error, record nothing more."""

    @wraps(method)
    def call(self: "Recorder", *arguments: Any, **information: Any) -> None:
        if self.stop.fatal_error is None:
            with self.stop.halting():
                method(self, *arguments, **information)

    return call


class Recorder(Unsaved, Callback):
    """Receives every event of a trial from Tune."""

    def __init__(
        self,
        experiment: Experiment,
        journal: Journal,
        tracker: Tracker,
        console: Console,
        scheduler: ReplayingScheduler,
        stop: StopRule,
    ) -> None:
        """Record the trials of one driver.

        Args:
            experiment: what is searched.
            journal: of the search, open.
            tracker: writes to MLflow.
            console: prints.
            scheduler: knows which trials it has stopped.
            stop: ends the search.
        """
        assert journal.search is not None
        self._experiment, self._journal, self._tracker = experiment, journal, tracker
        self._console, self._scheduler, self.stop = console, scheduler, stop
        self._search = journal.search
        self._best_trials = BestTrials(journal.directory, journal.search, experiment.search.keep)
        self._started: set[str] = set()
        self._errors: dict[str, tuple[str, Cause]] = {}  # of trials whose slot says that they have failed
        self._best = max((trial.score or 0.0 for trial in journal.search.finished), default=None)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A slot has taken a trial, for the first time or again."""
        history = self._search.trials[trial.config["trial_id"]]
        if history.id in self._started:
            return
        self._open(history)
        self._console.trial_started(history, describe_settings(history.settings))

    def catch_up(self) -> None:
        """Do what an earlier driver was killed before: end the trials that are over, write to MLflow."""
        for history in self._search.trials.values():
            running = history.status == "running"
            missing = self._experiment.trial_config(history.values).epochs - history.last_epoch if running else 0
            stopped_by = self._stopped_by(history) if missing or history.dropped else None
            if not missing or stopped_by:
                self._tell_again(history, stopped_by)
        if self.stop.stop_all():
            for history in self._search.unfinished:
                self._tell_again(history, self.stop.reason)

    @_halting
    def end_stopped(self) -> None:
        """End the trials that ran when a rule or the user ended the search: Tune stops them without a word."""
        if self.stop.reason is not None and not self.stop.interrupted:
            for history in self._search.unfinished:
                self._end(history, None, self._stopped_by(history) or self.stop.reason)

    def _tell_again(self, history: TrialHistory, stopped_by: str | None) -> None:
        with self._tracker.together(history):
            self._open(history)
            for epoch, metrics in history.reports.items():
                self._tracker.report(history.id, epoch, metrics, {})
            if history.status == "running":
                self._end(history, None, stopped_by)
            else:
                self._close(history)

    def end_where_no_slot_has(self, history: TrialHistory) -> None:
        """End a trial that the user has dropped before a slot has taken it."""
        if history.id not in self._started:
            with self.stop.halting():
                self._tell_again(history, "user")

    def _stopped_by(self, history: TrialHistory) -> str | None:
        """What has stopped a trial before its last epoch; None: nothing has, or the end of the search."""
        if history.dropped:
            return "user"
        return self._scheduler.name if history.id in self._scheduler.stopped else None

    def _open(self, history: TrialHistory) -> None:
        self._started.add(history.id)
        settings = self._experiment.trial_config(history.values)
        tags = trial_tags(self._search, seed=settings.seed(history.number))
        self._tracker.start_trial(history, params=flatten(settings.settings), tags=tags)

    @_halting
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported an epoch, or the error that ended it."""
        history = self._search.trials[trial.config["trial_id"]]
        if trial.config.get("score"):
            self._record_scores(result)
            return
        if "fatal" in result:
            self.stop.halt(result["fatal"])
            return
        if "error" in result:
            self._errors[history.id] = result["error"], result["cause"]
            return
        if "dropped" in result:
            return
        if "said" in result:
            self._console.trial_noted(history, result["said"])
            return
        if "failure" in result:
            history.failures = result["failures"]
            self._console.trial_noted(history, f"{result['failure']}; it resumes from its last checkpoint")
            return
        if "note" in result:
            self._console.trial_noted(history, result["note"])
        if "history" in result:
            self._journal.append("resumed", id=history.id, epoch=result["epoch"])
            self._console.trial_resumed(history, result["epoch"])
        for epoch, metrics in epochs_of(result):
            if epoch > self._scheduler.stopped.get(history.id, epoch):
                break  # it was stopped earlier
            result.update(metrics)  # Tune gives it to the searcher
            metrics = recorded_metrics(metrics)
            is_new = epoch not in history.reports
            if is_new:
                self._journal.append("report", id=history.id, epoch=epoch, metrics=metrics)
            # Also where the journal has the epoch: a driver may have been killed before it wrote to MLflow.
            self._tracker.report(history.id, epoch, metrics, result["tags"])
            if is_new:
                self._console.trial_reported(history, epoch, result["epochs"], metrics)

    @_halting
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has completed, or was stopped."""
        history = self._search.trials[trial.config["trial_id"]]
        if history.status != "running":
            return  # it was only scored
        if self.stop.interrupted and trial.config["trial_id"] not in self._errors:
            return  # a resume continues it
        error = self._errors.get(history.id)
        if error is None and not history.reports and self.stop.reason is None and not history.dropped:
            error = "it ended without a report", "other"
        self._end(history, error, self._stopped_by(history) or self.stop.reason)

    @_halting
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The slot of a trial was lost: the searcher gives the trial to another one, unless that was too often."""
        history = self._search.trials[trial.config["trial_id"]]
        if history.status != "running" or self.stop.interrupted:
            return
        history.failures += 1
        why = f"its slot was lost ({_last_line(trial.get_error())})"
        if history.failures > self._experiment.search.failures.per_trial:
            self._end(history, (too_often(why, history.failures), "other"), None)
        else:
            self._console.trial_noted(history, f"{why}; another one resumes it from its last checkpoint")

    def _record_scores(self, result: dict[str, Any]) -> None:
        """The best trial was scored on a slot; where that failed, the driver scores it."""
        for line in [*result.get("notes", ()), result.get("error"), result.get("failure")]:
            if line is not None:
                self._console.print(f"scoring the best trial: {line}")
        if "scores" in result:
            record_scores(self._journal, result)

    def _end(self, history: TrialHistory, error: tuple[str, Cause] | None, stopped_by: str | None) -> None:
        if history.id not in self._started:
            self._open(history)  # no slot has started with it
        if error is not None:
            text, cause = error
            self._journal.append("failed", id=history.id, error=redacted(text), cause=cause)
        else:
            self._journal.append("finished", id=history.id, stopped_by=stopped_by)
        self._close(history)
        self._console.trial_ended(history)
        if not history.keeps_checkpoints:
            discard_training_states(self._journal.directory, history)
        self._best_trials.ended(history)

    def _close(self, history: TrialHistory) -> None:
        if history.status == "finished" and history.score is not None:
            self._best = max(history.score, self._best or 0.0)
        self._tracker.finish_trial(history, self._search.num_ended, self._best)


def _last_line(error: Exception | None) -> str:
    """The last line of a chain of remote errors, which names the first cause."""
    if error is None:
        return "while it took the trial"  # Tune has noticed the loss twice, and kept no error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
