"""What a search has done so far: the state that its journal is replayed into (tuner/storage/journal.py)."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.errors import NothingToExport

Status = Literal["running", "finished", "failed"]
# settings: a trial with these settings would fail again (it diverged, or needs more memory). other: its workers were
# killed, or its files are damaged, for example; a journal of an earlier version has no cause.
Cause = Literal["settings", "other"]


@dataclass(slots=True, kw_only=True)
class TrialHistory:
    """The state of a trial."""

    number: int  # 0, 1, ... in the order of suggestion; 0 has the defaults of the experiment
    id: str
    values: dict[str, Any]  # the suggestion, by parameter name
    settings: dict[str, Any] = field(default_factory=dict)  # the resulting settings, by yaml path: `loss.l2: 12.5`
    sampler_state: dict[str, Any]  # what the sampler stored with the suggestion
    place: int | None = None  # in the study (tuner/search/sampling/suggestions.py); None: after the trial before it
    status: Status = "running"
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)  # metrics by epoch
    stopped_by: str | None = None  # asha, median, time_budget, plateau, ...; None: it completed all of its epochs
    error: str | None = None
    cause: Cause = "other"  # of the error
    dropped: bool = False  # whether the user has stopped it
    known: dict[str, str] | None = None  # the trial of an earlier search whose result it has: search, trial
    failures: int = 0  # how often this driver has lost its workers or its slot; the journal does not count them

    @property
    def score(self) -> float | None:
        """The highest GAP of its epochs; None before the first report and for a failed trial."""
        if self.status == "failed" or not self.reports:
            return None
        return max(float(report["gap"]) for report in self.reports.values())

    @property
    def failed_by_settings(self) -> bool:
        """Whether its own settings made it fail: for the sampler it is worse than every trial that has a score."""
        return self.status == "failed" and self.cause == "settings"

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether it may train on from its checkpoints: in a resume, or where `--retry-failed` tries it again.

        A failure by its settings, as of a loss that is not finite, may already be in its checkpoint.
        """
        return self.status == "running" or (self.status == "failed" and self.cause == "other")

    @property
    def last_epoch(self) -> int:
        """The last epoch that it reported, or 0.

        Earlier ones may be missing: a contrastive trial that uses the encoder of another one reports no pretraining.
        """
        return max(self.reports, default=0)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch that reached the score; None without a score."""
        score = self.score
        return next((epoch for epoch, report in sorted(self.reports.items()) if report["gap"] == score), None)

    @property
    def rank(self) -> tuple[float, int]:
        """The order of trials that have a score, best first; of equal ones, the earlier is the better."""
        return -(self.score or 0.0), self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A driver of a search: what remains of it in Ray, to be removed, when it was killed."""

    cluster: str  # the Ray cluster that it used
    job: str  # its Ray job, which owns placement groups
    scratch: str | None  # the folder of a private Ray; None on a shared cluster


@dataclass(slots=True, kw_only=True)
class SearchHistory:
    """The state of a search."""

    id: str
    experiment: str
    fingerprint: str  # of the training and validation data
    planned: int  # number of trials, extensions included
    tracking_uri: str  # of MLflow, without its credentials
    overrides: tuple[str, ...] = ()  # `--set` options of the command that started it
    trials: dict[str, TrialHistory] = field(default_factory=dict)  # by id, in order of suggestion
    warmed: bool = False  # whether it knows what `search.warm_start` names
    # Trials of earlier searches, as {number, values, score}; the score is None where their settings made them fail.
    taught: list[dict[str, Any]] = field(default_factory=list)
    queued: list[dict[str, Any]] = field(default_factory=list)  # values to try before those of the sampler
    reported: list[tuple[str, int]] = field(default_factory=list)  # (id of the trial, epoch) of each report, in order
    attempts: list[Attempt] = field(default_factory=list)  # its drivers, the newest last
    steered: dict[str, str] = field(default_factory=dict)  # what the user asked for and got, by the id of the request
    paused: bool = False  # whether the user has paused it; a driver that resumes it goes on
    stopped: bool = False  # whether the user has ended it
    seconds: float = 0.0  # that its drivers have run so far, each up to its last entry
    last_entry: float | None = None  # time of the last entry of the newest driver, in seconds since 1970
    study_state: dict[str, Any] = field(default_factory=dict)  # what the sampler stored with the study
    num_ended: int = 0  # number of trials that finished or failed
    # planned, exhausted, time_budget, goal, plateau, failures or user; None: it has not ended and can be resumed
    ended: str | None = None
    tracked: bool = False  # whether MLflow has everything; if not, resuming an ended search writes the rest
    baseline: float = 0.0  # GAP on the validation sample of the labels' frequencies as scores of every video
    winner: dict[str, Any] | None = None  # the best trial's id as "trial", and its "metrics" on whole splits, by split

    @property
    def finished(self) -> list[TrialHistory]:
        """Trials that have a score, best first."""
        done = [trial for trial in self.trials.values() if trial.status == "finished" and trial.score is not None]
        return sorted(done, key=lambda trial: trial.rank)

    @property
    def failed(self) -> list[TrialHistory]:
        """Trials that failed for good."""
        return [trial for trial in self.trials.values() if trial.status == "failed"]

    @property
    def unfinished(self) -> list[TrialHistory]:
        """Trials that were suggested and have neither finished nor failed."""
        return [trial for trial in self.trials.values() if trial.status == "running"]

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """The queued values that no trial has."""
        tried = [trial.values for trial in self.trials.values()]
        return [values for values in self.queued if values not in tried]

    @property
    def untuned_score(self) -> float | None:
        """The score of trial 0, which has the experiment's defaults; None where it has none yet, or failed."""
        return next((trial.score for trial in self.trials.values() if trial.number == 0), None)

    def table(self) -> list[dict[str, Any]]:
        """One row for each trial, in the order of suggestion: what became of it, its score, and its settings by path.

        `pandas.DataFrame(search.table())` makes a data frame of it.
        """
        return [
            {
                "number": trial.number,
                "id": trial.id,
                "status": trial.status,
                "score": trial.score,
                "best_epoch": trial.best_epoch,
                "epochs": trial.last_epoch,
                "stopped_by": trial.stopped_by,
                "error": trial.error,
                **trial.settings,
            }
            for trial in self.trials.values()
        ]

    def best_trial(self) -> TrialHistory:
        """The finished trial with the best score.

        Raises:
            NothingToExport: no trial has finished; the message says how many failed, and why the first one did.
        """
        if self.finished:
            return self.finished[0]
        failed = f"{len(self.failed)} failed"
        if self.failed:
            failed += f", the first with: {self.failed[0].error}"
        running = f"{len(self.unfinished)} have not ended; " if self.unfinished else ""
        raise NothingToExport(f"search {self.id} of {self.experiment}: no trial has finished; {running}{failed}")

    @property
    def best_is_scored(self) -> bool:
        """Whether the best trial is known on whole splits."""
        return self.winner is not None and bool(self.finished) and self.winner["trial"] == self.finished[0].id

    def metrics_on_whole_splits(self, trial: TrialHistory) -> dict[str, dict[str, float]]:
        """The metrics of `trial` on all videos of a split, by split; empty for any trial but an evaluated winner."""
        known = self.winner or {}
        return dict(known["metrics"]) if known.get("trial") == trial.id else {}
