"""The search's own record: an append-only file of JSON lines, the truth about a search.

Every line is stored for good before anyone acts on it.

Tune's snapshots lag behind (finished trials were run again after a kill -9), so nothing is read back from them:
`--resume`, `--extend` and the leader table all replay this file.

    <storage>/<experiment>/<search>/journal.jsonl     this file; in an object store, its parts
                                    (tuner/storage/append_log.py)
                                    experiment.yaml   the resolved experiment, as the search runs it
                                    trials/<trial>/   checkpoints of a trial
                                    ray.log           what Ray printed
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.errors import NothingToExport, SearchError
from tuner.storage.append_log import lines
from tuner.storage.place import Place
from tuner.storage.stores import at

VERSION = 1
FILE = "journal.jsonl"
Status = Literal["running", "finished", "failed"]


@dataclass(slots=True, kw_only=True)
class TrialHistory:
    """What the journal knows of one trial."""

    number: int  # 0, 1, ... in order of suggestion; 0 is the untuned model
    id: str
    values: dict[str, Any]  # the suggestion, by parameter name
    settings: dict[str, Any] = field(default_factory=dict)  # what it comes to, by yaml path: `loss.l2: 12.5`
    sampler_state: dict[str, Any]  # what the sampler stored with its suggestion
    status: Status = "running"
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)  # metrics by epoch
    stopped_by: str | None = None  # asha, median, time_budget, plateau; None: it ran all of its epochs
    error: str | None = None

    @property
    def score(self) -> float | None:
        """The best GAP of its epochs; None before the first report and for a failed trial."""
        if self.status == "failed" or not self.reports:
            return None
        return max(float(report["gap"]) for report in self.reports.values())

    @property
    def last_epoch(self) -> int:
        """The last one it reported; a contrastive trial that took an encoder from another has none before it."""
        return max(self.reports, default=0)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch that reached the score."""
        score = self.score
        return next((epoch for epoch, report in sorted(self.reports.items()) if report["gap"] == score), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One driver of a search, by what it may leave behind when it is killed."""

    cluster: str  # the Ray it ran on
    job: str  # its job there: placement groups
    scratch: str | None  # the folder of a Ray of its own


@dataclass(slots=True, kw_only=True)
class SearchHistory:
    """A search, as its journal tells it."""

    id: str
    experiment: str
    fingerprint: str  # of the data
    planned: int  # trials, extensions included
    tracking_uri: str  # of MLflow, without its credentials
    overrides: tuple[str, ...] = ()  # settings of the command line that it was started with
    trials: dict[str, TrialHistory] = field(default_factory=dict)  # by id, in order of suggestion
    attempts: list["Attempt"] = field(default_factory=list)  # its drivers so far
    study_state: dict[str, Any] = field(default_factory=dict)  # what the sampler stored with the study
    num_ended: int = 0  # trials that finished or failed
    ended: str | None = None  # why it ended: planned, time_budget, plateau, failures; None: it can be resumed
    tracked: bool = False  # whether MLflow has all of it; if not, a resume of an ended search tells the rest
    baseline: float = 0.0  # GAP of giving every video the most frequent labels, on the validation sample
    winner: dict[str, Any] | None = None  # {"trial": id, "metrics": by split}: the best trial, scored on whole splits

    @property
    def finished(self) -> list[TrialHistory]:
        """Trials that have a score, best first."""
        done = [trial for trial in self.trials.values() if trial.status == "finished" and trial.score is not None]
        return sorted(done, key=lambda trial: (-(trial.score or 0.0), trial.number))

    @property
    def failed(self) -> list[TrialHistory]:
        """Trials that failed for good."""
        return [trial for trial in self.trials.values() if trial.status == "failed"]

    @property
    def unfinished(self) -> list[TrialHistory]:
        """Trials that were suggested and have neither finished nor failed."""
        return [trial for trial in self.trials.values() if trial.status == "running"]

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

    def metrics_on_whole_splits(self, trial: TrialHistory) -> dict[str, dict[str, float]]:
        """The metrics of `trial` on all videos of a split, by split; empty for any trial but an evaluated winner."""
        known = self.winner or {}
        return dict(known["metrics"]) if known.get("trial") == trial.id else {}


class Journal:
    """The journal of one search, open for writing; who opens it is the only driver (tuner/storage/lock.py)."""

    def __init__(self, directory: Place, still_ours: Callable[[], None] = lambda: None) -> None:
        """Open the journal in `directory` and replay it.

        Args:
            directory: of the search.
            still_ours: is called before every write, and raises SearchError where another driver has taken over.

        Raises:
            SearchError: it is damaged before its last line.
        """
        at(directory).make()
        self.directory, self.still_ours = directory, still_ours
        self.search = _replay(directory / FILE)
        self._file = at(directory / FILE).open_log()

    def append(self, type: str, **fields: Any) -> None:
        """Write one record, stored when this returns, and apply it to `search`.

        Raises:
            SearchError: another driver has taken over; or it cannot be written, and nothing of it is left in the file.
        """
        line = json.dumps({"type": type, "time": round(time.time(), 3), **fields})
        self.still_ours()
        self._file.append(line.encode() + b"\n")
        self.search = _apply(self.search, json.loads(line))  # what a replay will see

    def close(self) -> None:
        """Write no more."""
        self._file.close()


class Unsaved:
    """For what Tune would pickle into its snapshots: the journal is its state, so a snapshot holds nothing of it."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def read(directory: Place) -> SearchHistory:
    """Replay the journal of a search without opening it for writing.

    Raises:
        SearchError: there is none, or it is damaged before its last line.
    """
    record = _replay(directory / FILE)
    if record is None:
        raise SearchError(f"{directory / FILE}: no journal of a search")
    return record


def _replay(path: Place) -> SearchHistory | None:
    search = None
    for place, line in lines(at(path).log_parts()):
        try:
            record = json.loads(line)
        except ValueError as error:  # no JSON, or no text at all
            raise SearchError(f"{place}: the journal is damaged ({error})") from error
        try:
            search = _apply(search, record)
        except SearchError as error:
            raise SearchError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise SearchError(f"{place}: the journal is damaged ({reason})") from error
    return search


def _apply(search: SearchHistory | None, record: dict[str, Any]) -> SearchHistory:
    """The state after one more record."""
    kind = record["type"]
    if kind == "search":
        if record["version"] != VERSION:
            raise SearchError(f"a journal of version {record['version']}, but this program reads version {VERSION}")
        fields = ("id", "experiment", "fingerprint", "planned", "tracking_uri", "baseline")
        return SearchHistory(overrides=tuple(record["overrides"]), **{name: record[name] for name in fields})
    if search is None:
        raise KeyError("the first record of a journal is the search itself")
    match kind:
        case "suggested":
            search.study_state = record["study_state"]
            search.trials[record["id"]] = TrialHistory(
                number=record["number"],
                id=record["id"],
                values=record["values"],
                settings=record["settings"],
                sampler_state=record["sampler_state"],
            )
        case "report":
            search.trials[record["id"]].reports[record["epoch"]] = record["metrics"]
        case "resumed":
            pass  # that the trial went on from the checkpoint of an epoch: for whoever asks what a fault cost
        case "finished" | "failed":
            trial = search.trials[record["id"]]
            search.num_ended += trial.status == "running"
            trial.status = kind
            trial.stopped_by, trial.error = record.get("stopped_by"), record.get("error")
            trial.sampler_state |= record.get("sampler_state", {})
        case "attempt":
            search.attempts.append(Attempt(cluster=record["cluster"], job=record["job"], scratch=record["scratch"]))
            search.tracking_uri, search.tracked = record.get("tracking_uri", search.tracking_uri), False
        case "extended":
            search.planned += record["trials"]
            search.ended = None
        case "winner":
            search.winner = {"trial": record["id"], "metrics": record["metrics"]}
        case "ended":
            search.ended = record["reason"]
        case "tracked":
            search.tracked = True
    return search
