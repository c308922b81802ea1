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
from typing import Any

from crc32c import crc32c

from tuner.errors import SearchError
from tuner.storage.append_log import lines
from tuner.storage.history import Attempt as Attempt
from tuner.storage.history import Cause as Cause
from tuner.storage.history import SearchHistory as SearchHistory
from tuner.storage.history import TrialHistory as TrialHistory
from tuner.storage.place import Place, store_errors
from tuner.storage.stores import at

VERSION = 1
FILE = "journal.jsonl"
_CHECKSUM = re.compile(rb', "crc32c": ([0-9]+)}$')  # how a line ends


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
