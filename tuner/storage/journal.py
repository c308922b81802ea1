"""The journal of a search: a file of JSON lines that only grows, and from which the state of the search is replayed.

An entry is stored durably before anyone acts on it. The journal alone decides what has happened: Tune's snapshots lag
behind (after a kill -9, finished trials were run again), so nothing is read from them. `--resume`, `--extend` and the
leader table replay the journal.

    <storage>/<experiment>/<search>/journal.jsonl     the journal; in an object store, segments (storage/append_log.py)
                                    experiment.yaml   the resolved experiment that the search runs
                                    trials/<trial>/   checkpoints of a trial
                                    ray.log           what Ray printed

An entry is an object with `type`, `time` (seconds since 1970), the fields of its type, and `crc32c`: the checksum of
all lines so far, so that neither a changed digit nor a line that is gone is taken for another search. Journals of
earlier versions have none.

    search      the first entry: version, id, experiment, overrides, fingerprint, planned, tracking_uri, baseline
    attempt     a driver begins: cluster, job, scratch, tracking_uri
    suggested   a new trial: number, id, values, settings, place, sampler_state, study_state; known: where its result is
                taken from, {search, trial}
    warm_start  what earlier searches know, all of it or nothing: entries, of this and the next two types among others
    taught      trials of an earlier search teach the sampler: search, trials (number, values, score)
    queued      values that are to be tried before those of the sampler: values
    report      an epoch of a trial is over: id, epoch, metrics
    resumed     a trial continued from the checkpoint of an epoch: id, epoch
    finished    a trial ended with a score: id, stopped_by, sampler_state
    failed      a trial failed for good: id, error, cause, sampler_state
    steered     the user asked for something: request, verb, said, and what follows: values, id, planned
    extended    the search has more trials: trials
    retried     failed trials are tried again, and are running until they end again: ids
    winner      the best trial was evaluated on whole splits: id, metrics by split
    ended       the search ended: reason
    tracked     MLflow has everything up to here
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from crc32c import crc32c

from tuner.errors import NothingToExport, SearchError
from tuner.storage.append_log import lines
from tuner.storage.place import Place, store_errors
from tuner.storage.stores import at

VERSION = 1
FILE = "journal.jsonl"
_CHECKSUM = re.compile(rb', "crc32c": ([0-9]+)}$')  # how a line ends
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


class Journal:
    """The journal of a search, open for writing. Its process must hold the lock (tuner/storage/lock.py)."""

    def __init__(self, directory: Place, still_ours: Callable[[], None] = lambda: None) -> None:
        """Open the journal in `directory` and replay it.

        Args:
            directory: the folder of the search; it is created where it does not exist.
            still_ours: called before and after every write; raises SearchError once another driver has taken over.

        Raises:
            SearchError: a line before the last one is damaged.
        """
        at(directory).make()
        self.directory, self.still_ours = directory, still_ours
        file = directory / FILE
        parts = at(file).log_parts()
        self.search, self._checksum = _replay(file, parts)
        self._file = at(file).open_log(parts)

    def append(self, type: str, **fields: Any) -> None:
        """Store an entry, and apply it to `search`.

        Raises:
            SearchError: another driver has taken over; or the entry cannot be written, and the file is left without it.
            ConfigError: the object store refuses the entry.
            UnreachableError: the folder or store does not answer; the entry may have been stored.
        """
        content = json.dumps({"type": type, "time": round(time.time(), 3), **fields}).encode()[:-1]
        checksum = crc32c(content, self._checksum)
        line = content + b', "crc32c": %d}' % checksum
        with store_errors(str(self.directory / FILE)):
            self.still_ours()
            self._file.append(line + b"\n")
            self.still_ours()  # this process may have been suspended between the two: then the line does not count
        self._checksum = checksum
        self.search = _apply(self.search, json.loads(line))  # as a replay will read it: lists for tuples

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Unsaved:
    """Base of the objects that Tune pickles into its snapshots; their state is the journal, so a snapshot has none."""

    def __getstate__(self) -> dict[str, Any]:
        """An empty state."""
        return {}


def read(directory: Place) -> SearchHistory:
    """The state of a search, replayed from its journal, which may be open in another process.

    Raises:
        SearchError: there is no journal, or a line before the last one is damaged.
    """
    search, _ = _replay(directory / FILE, at(directory / FILE).log_parts())
    if search is None:
        raise SearchError(f"{directory / FILE}: there is no journal of a search")
    return search


def _replay(path: Place, parts: Iterable[tuple[Place, bytes]]) -> tuple[SearchHistory | None, int]:
    """The state after all lines, and their checksum; it is 0 where none has one."""
    search, checksum = None, 0
    for position, line in lines(parts):
        try:
            checksum = _checked(line, checksum)
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, not even text, or not what was written
            raise SearchError(f"{position}: the journal is damaged ({error})") from error
        try:
            search = _apply(search, entry)
        except SearchError as error:
            raise SearchError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise SearchError(f"{position}: the journal is damaged ({reason})") from error
    return search, checksum


def _checked(line: bytes, before: int) -> int:
    """The checksum of the lines up to this one; `before` is that of the lines before it.

    Raises:
        ValueError: it is not the one that was written.
    """
    end = _CHECKSUM.search(line)
    if end is None and not before:
        return 0  # of an earlier version
    checksum = crc32c(line[: end.start() if end else None], before)
    if end is None or checksum != int(end[1]):
        raise ValueError("its checksum is not the one of the lines up to here")
    return checksum


def _apply(search: SearchHistory | None, entry: dict[str, Any]) -> SearchHistory:
    """The state after a further entry; the state that is given may be changed."""
    type = entry["type"]
    if type == "search":
        if entry["version"] != VERSION:
            raise SearchError(f"a journal of version {entry['version']}, but this program reads version {VERSION}")
        fields = ("id", "experiment", "fingerprint", "planned", "tracking_uri", "baseline")
        return SearchHistory(overrides=tuple(entry["overrides"]), **{name: entry[name] for name in fields})
    if search is None:
        raise KeyError("the first entry is not of type search")
    _count_time(search, type, entry.get("time"))
    match type:
        case "suggested":
            search.study_state = entry["study_state"]
            search.trials[entry["id"]] = TrialHistory(
                number=entry["number"],
                id=entry["id"],
                values=entry["values"],
                settings=entry["settings"],
                sampler_state=entry["sampler_state"],
                place=entry.get("place"),
                known=entry.get("known"),
            )
        case "report":
            search.trials[entry["id"]].reports[entry["epoch"]] = entry["metrics"]
            search.reported.append((entry["id"], entry["epoch"]))
        case "warm_start":
            search.warmed = True
            for one in entry["entries"]:
                search = _apply(search, one)
        case "taught":
            search.taught += entry["trials"]
        case "queued":
            search.queued.append(entry["values"])
        case "resumed":
            pass  # for people and tests who want to know what a fault cost
        case "finished" | "failed":
            trial = search.trials[entry["id"]]
            search.num_ended += trial.status == "running"
            trial.status = type
            trial.stopped_by, trial.error = entry.get("stopped_by"), entry.get("error")
            trial.cause = entry.get("cause", "other")
            trial.sampler_state |= entry.get("sampler_state", {})
        case "attempt":
            search.paused = False
            search.attempts.append(Attempt(cluster=entry["cluster"], job=entry["job"], scratch=entry["scratch"]))
            search.tracking_uri, search.tracked = entry.get("tracking_uri", search.tracking_uri), False
        case "extended":
            search.planned += entry["trials"]
            search.ended, search.stopped = None, False
        case "steered":
            _steer(search, entry)
        case "retried":
            for id in entry["ids"]:
                trial = search.trials[id]
                search.num_ended -= trial.status != "running"
                trial.status, trial.error, trial.cause, trial.stopped_by = "running", None, "other", None
                trial.known, trial.failures = None, 0
            search.ended, search.stopped = None, False
        case "winner":
            search.winner = {"trial": entry["id"], "metrics": entry["metrics"]}
        case "ended":
            search.ended = entry["reason"]
        case "tracked":
            search.tracked = True
    return search


def _steer(search: SearchHistory, entry: dict[str, Any]) -> None:
    search.steered[entry["request"]] = entry["said"]
    search.planned = entry.get("planned", search.planned)
    match entry["verb"]:
        case "try":
            search.queued.append(entry["values"])
        case "drop":
            search.trials[entry["id"]].dropped = True
        case "pause" | "resume":
            search.paused = entry["verb"] == "pause"
        case "stop":
            search.stopped = True


def _count_time(search: SearchHistory, type: str, now: float | None) -> None:
    """Add the time since the entry before, where the same driver wrote both; a clock that was set back adds none."""
    if now is None or (type != "attempt" and not search.attempts):
        return
    if type != "attempt" and search.last_entry is not None and not search.paused:
        search.seconds += max(0.0, now - search.last_entry)
    search.last_entry = now
