"""The search's own record: an append-only, fsynced file of JSON lines, the truth about a search.

Tune's snapshots lag behind (finished trials were run again after a kill -9), so nothing is read back from them:
`--resume`, `--extend` and the leader table all replay this file.

    <storage>/<experiment>/<search>/journal.jsonl     this file
                                    experiment.yaml   the resolved experiment, as the search runs it
                                    trials/<trial>/   checkpoints of a trial
                                    ray.log           what Ray printed
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from filelock import FileLock, Timeout

from tuner.errors import SearchError

VERSION = 1
Status = Literal["running", "finished", "failed"]


@dataclass(slots=True, kw_only=True)
class TrialRecord:
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
class SearchRecord:
    """A search, as its journal tells it."""

    id: str
    experiment: str
    fingerprint: str  # of the data
    planned: int  # trials, extensions included
    tracking_uri: str  # of MLflow, without its credentials
    overrides: tuple[str, ...] = ()  # settings of the command line that it was started with
    trials: dict[str, TrialRecord] = field(default_factory=dict)  # by id, in order of suggestion
    attempts: list["Attempt"] = field(default_factory=list)  # its drivers so far
    study_state: dict[str, Any] = field(default_factory=dict)  # what the sampler stored with the study
    num_ended: int = 0  # trials that finished or failed
    ended: str | None = None  # why it ended: planned, time_budget, plateau, failures; None: it can be resumed
    tracked: bool = False  # whether MLflow has all of it; if not, a resume of an ended search tells the rest
    baseline: float = 0.0  # GAP of giving every video the most frequent labels, on the validation sample
    winner: dict[str, Any] | None = None  # {"trial": id, "metrics": by split}: the best trial, scored on whole splits

    @property
    def finished(self) -> list[TrialRecord]:
        """Trials that have a score, best first."""
        done = [trial for trial in self.trials.values() if trial.status == "finished" and trial.score is not None]
        return sorted(done, key=lambda trial: (-(trial.score or 0.0), trial.number))

    @property
    def failed(self) -> list[TrialRecord]:
        """Trials that failed for good."""
        return [trial for trial in self.trials.values() if trial.status == "failed"]

    @property
    def unfinished(self) -> list[TrialRecord]:
        """Trials that were suggested and have neither finished nor failed."""
        return [trial for trial in self.trials.values() if trial.status == "running"]


class Journal:
    """The journal of one search, open for writing by one driver at a time."""

    def __init__(self, directory: Path) -> None:
        """Open the journal in `directory` and replay it.

        Raises:
            SearchError: another driver has it open, or it is damaged before its last line.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._lock = FileLock(directory / "driver.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            owner = (directory / "driver").read_text() if (directory / "driver").exists() else "another process"
            told = f"search {directory.name} is being run by {owner}; wait for it or stop it first"
            raise SearchError(told) from error
        path = directory / "journal.jsonl"
        try:
            _cut_torn_line(path)
            self.search = _replay(path) if path.exists() else None
        except BaseException:
            self._lock.release()
            raise
        (directory / "driver").write_text(f"process {os.getpid()} on {os.uname().nodename}")
        self._file: IO[str] = path.open("a")

    def append(self, type: str, **fields: Any) -> None:
        """Write one record, on the disk when this returns, and apply it to `search`."""
        line = json.dumps({"type": type, "time": round(time.time(), 3), **fields})
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.search = _apply(self.search, json.loads(line))  # what a replay will see

    def close(self) -> None:
        """Let another driver have it."""
        self._file.close()
        (self.directory / "driver").unlink(missing_ok=True)
        self._lock.release()


class Unsaved:
    """For what Tune would pickle into its snapshots: the journal is its state, so a snapshot holds nothing of it."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def read(directory: Path) -> SearchRecord:
    """Replay the journal of a search without opening it for writing.

    Raises:
        SearchError: there is none, or it is damaged before its last line.
    """
    path = directory / "journal.jsonl"
    record = _replay(path) if path.exists() else None
    if record is None:
        raise SearchError(f"{path}: no journal of a search")
    return record


def exists(directory: Path) -> bool:
    """Whether a search began there."""
    path = directory / "journal.jsonl"
    return path.exists() and path.stat().st_size > 0


def searches(storage: Path, experiment: str) -> list[Path]:
    """The directories of an experiment's searches, oldest first."""
    return sorted(path.parent for path in (storage / experiment).glob("*/journal.jsonl"))


def new_search_id() -> str:
    """A name that sorts by time and does not repeat on one machine."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid() % 10000:04d}"


def _replay(path: Path) -> SearchRecord | None:
    search = None
    for number, record in _lines(path):
        try:
            search = _apply(search, record)
        except SearchError as error:
            raise SearchError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise SearchError(f"{path}:{number}: the journal is damaged ({reason})") from error
    return search


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Every whole record with the number of its line; a last line cut short by a crash is not one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:  # no JSON, or no text at all
                raise SearchError(f"{path}:{number}: the journal is damaged ({error})") from error


def _cut_torn_line(path: Path) -> None:
    """Drop what a crash left of a last record, so that the next one starts on its own line."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _apply(search: SearchRecord | None, record: dict[str, Any]) -> SearchRecord:
    """The state after one more record."""
    kind = record["type"]
    if kind == "search":
        if record["version"] != VERSION:
            raise SearchError(f"a journal of version {record['version']}, but this program reads version {VERSION}")
        fields = ("id", "experiment", "fingerprint", "planned", "tracking_uri", "baseline")
        return SearchRecord(overrides=tuple(record["overrides"]), **{name: record[name] for name in fields})
    if search is None:
        raise KeyError("the first record of a journal is the search itself")
    match kind:
        case "suggested":
            search.study_state = record["study_state"]
            search.trials[record["id"]] = TrialRecord(
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
