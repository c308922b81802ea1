"""Records what trials do: first in the journal, then in MLflow, then on the screen. A search's only Tune callback."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ray.tune import Callback

from tuner.config.experiment import Experiment
from tuner.console import Console, describe_settings
from tuner.errors import SearchError
from tuner.export.checkpoints import discard_training_states
from tuner.redact import redacted
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.stopper import StopRule
from tuner.storage.journal import Journal, TrialHistory, Unsaved
from tuner.tracking.records import recorded_metrics, trial_tags
from tuner.tracking.tracker import Tracker
from tuner.training.config import flatten
from tuner.workers.trial import epochs_of


def _halting(method: Callable[..., None]) -> Callable[..., None]:
    """End the search in order where the journal cannot be written; an exception in Tune's loop would abort it."""

    @wraps(method)
    def call(self: "Recorder", *arguments: Any, **information: Any) -> None:
        try:
            method(self, *arguments, **information)
        except SearchError as error:
            self.stop.halt(str(error))

    return call


class Recorder(Unsaved, Callback):
    """Receives every event of a trial from Tune."""

    def __init__(
        self,
        experiment: Experiment,
        record: Journal,
        tracker: Tracker,
        console: Console,
        scheduler: ReplayingScheduler,
        stop: StopRule,
    ) -> None:
        """Record the trials of one driver.

        Args:
            experiment: what is searched.
            record: the journal of the search, open.
            tracker: writes to MLflow.
            console: prints.
            scheduler: knows which trials it has stopped.
            stop: ends the search.
        """
        assert record.search is not None
        self._experiment, self._journal, self._tracker = experiment, record, tracker
        self._console, self._scheduler, self.stop = console, scheduler, stop
        self._search = record.search
        self._started: set[str] = set()
        self._errors: dict[str, str] = {}
        self._best = max((trial.score or 0.0 for trial in record.search.finished), default=None)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's actor has started, for the first time or again."""
        record = self._search.trials[trial.config["trial_id"]]
        if record.id in self._started:
            return
        self._open(record)
        self._console.trial_started(record, describe_settings(record.settings))

    def catch_up(self) -> None:
        """Write to MLflow the trials that have ended: an earlier driver may have been killed before it did so."""
        for record in self._search.trials.values():
            if record.status != "running":
                self._open(record)
                for epoch, metrics in record.reports.items():
                    self._tracker.report(record.id, epoch, metrics, {})
                self._close(record)

    def _open(self, record: TrialHistory) -> None:
        self._started.add(record.id)
        settings = self._experiment.trial_config(record.values)
        tags = trial_tags(self._search, seed=settings.seed(record.number))
        self._tracker.start_trial(record, params=flatten(settings.settings), tags=tags)

    @_halting
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported an epoch, or the error that ended it."""
        record = self._search.trials[trial.config["trial_id"]]
        if "fatal" in result:
            self.stop.halt(result["fatal"])
            return
        if "error" in result:
            self._errors[record.id] = result["error"]
            return
        if "note" in result:
            self._console.trial_noted(record, result["note"])
        if "history" in result:
            self._journal.append("resumed", id=record.id, epoch=result["epoch"])
            self._console.trial_resumed(record, result["epoch"])
        for epoch, metrics in epochs_of(result):
            metrics = recorded_metrics(metrics)
            is_new = epoch not in record.reports
            if is_new:
                self._journal.append("report", id=record.id, epoch=epoch, metrics=metrics)
            # Also where the journal has the epoch: a driver may have been killed before it wrote to MLflow.
            self._tracker.report(record.id, epoch, metrics, result["tags"])
            if is_new:
                self._console.trial_reported(record, epoch, result["epochs"], metrics)

    @_halting
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has completed, or was stopped."""
        record = self._search.trials[trial.config["trial_id"]]
        if self.stop.interrupted and trial.config["trial_id"] not in self._errors:
            return  # a resume continues it
        error = self._errors.get(record.id)
        if error is None and not record.reports and self.stop.reason is None:
            error = "it ended without a report"
        stopped_by = self._scheduler.name if record.id in self._scheduler.stopped else self.stop.reason
        self._end(record, error, stopped_by)

    @_halting
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed in all of its attempts."""
        record = self._search.trials[trial.config["trial_id"]]
        if not self.stop.interrupted:
            self._end(record, _last_line(trial.get_error()), None)

    def _end(self, record: TrialHistory, error: str | None, stopped_by: str | None) -> None:
        if error is not None:
            self._journal.append("failed", id=record.id, error=redacted(error))
        else:
            self._journal.append("finished", id=record.id, stopped_by=stopped_by)
        self._close(record)
        self._console.trial_ended(record)
        discard_training_states(self._journal.directory, record)

    def _close(self, record: TrialHistory) -> None:
        if record.status == "finished" and record.score is not None:
            self._best = max(record.score, self._best or 0.0)
        self._tracker.finish_trial(record, self._search.num_ended, self._best)


def _last_line(error: Exception | None) -> str:
    """The last line of a chain of remote errors, which names the first cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
