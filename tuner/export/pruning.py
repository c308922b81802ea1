"""Removes what a search has stored and nobody needs any more.

A trial that has not ended keeps its checkpoints, because a resume needs them, and so does one that has failed for
another reason than its settings, for `--retry-failed`. Of the other trials, the best `search.keep` keep the weights of
their best epoch, for exports and ensembles; everything else goes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tuner.storage import journal, lock
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.storage.searches import RAY, TRIALS
from tuner.storage.stores import at
from tuner.training import checkpoint

MIB = 2**20

Keep = int | Literal["all"]  # how many of the best trials keep their weights


class BestTrials:
    """The best trials of a search so far; told of each end, it removes what is not needed any more."""

    def __init__(self, directory: Place, search: SearchHistory, keep: Keep) -> None:
        """Begin with the trials that have ended.

        Args:
            directory: of the search.
            search: its journal.
            keep: how many trials keep their weights.
        """
        self._directory, self._keep = directory, keep
        self._best = [(*trial.rank, trial.id) for trial in search.finished]
        if keep != "all":
            del self._best[keep:]

    def ended(self, trial: TrialHistory) -> None:
        """Remove what is not needed after the end of this trial: of it, or of the trial whose place it has taken."""
        if trial.keeps_checkpoints:
            return
        out = trial.id
        if trial.status == "finished" and trial.score is not None:
            insort(self._best, (*trial.rank, trial.id))
            out = self._best.pop()[-1] if self._keep != "all" and len(self._best) > self._keep else ""
        if out != trial.id:
            for folder in _needless_of(self._directory, trial):
                at(folder).remove()
        if out:
            at(self._directory / TRIALS / out).remove()


def needless(directory: Place, search: SearchHistory, keep: Keep) -> list[Place]:
    """The folders of a search that neither a resume nor an export needs.

    Args:
        directory: of the search.
        search: its journal.
        keep: how many trials keep their weights.
    """
    kept = {trial.id for trial in (search.finished if keep == "all" else search.finished[:keep])}
    found: list[Place] = [directory / RAY] if (directory / RAY).exists() else []
    folders: list[Place] = list((directory / TRIALS).glob("*"))
    for folder in folders:
        trial = search.trials.get(folder.name)
        if trial is None or trial.keeps_checkpoints:
            continue
        found += _needless_of(directory, trial) if trial.id in kept else [folder]
    return found


@dataclass(frozen=True, slots=True)
class Pruning:
    """What would be removed of a search."""

    directory: Place
    search: SearchHistory
    folders: list[Place]
    bytes: int  # in these folders
    bytes_kept: int  # in the other folders of its trials

    def describe(self) -> str:
        """One line about it."""
        trials = {part for folder in self.folders for part in str(folder).split("/") if part in self.search.trials}
        open_trials = len(self.search.unfinished)
        kept = f"; trials that have not ended keep their checkpoints: {open_trials}" if open_trials else ""
        return (
            f"search {self.search.id} of {self.search.experiment}: checkpoints of {len(trials)} trials, "
            f"{self.bytes / MIB:,.1f} MiB of {(self.bytes + self.bytes_kept) / MIB:,.1f} MiB{kept}"
        )


def plan(directory: Place, keep: Keep) -> Pruning:
    """What would be removed of a search so that `keep` trials keep their weights.

    Raises:
        SearchError: its journal cannot be read.
    """
    search = journal.read(directory)
    folders = needless(directory, search, keep)
    size, all_of_it = sum(map(_size, folders)), _size(directory / TRIALS) + _size(directory / RAY)
    return Pruning(directory, search, folders, size, all_of_it - size)


def prune(directory: Place, keep: Keep) -> int:
    """Remove it; returns the number of bytes.

    Raises:
        SearchError: a driver runs a search of this experiment, or the journal cannot be read.
    """
    with lock.only_driver(directory.parent, directory.name):
        planned = plan(directory, keep)
        for folder in planned.folders:
            at(folder).remove()
        return planned.bytes


def remove_needless(directory: Place, search: SearchHistory, keep: Keep, log: Callable[[str], None]) -> None:
    """Remove what a search does not need at its end; its driver calls it, and holds the lock.

    Args:
        directory: of the search.
        search: its journal.
        keep: how many trials keep their weights.
        log: gets a line for each folder: a driver that was killed has left it.
    """
    for folder in needless(directory, search, keep):
        log(f"removes {folder}")
        at(folder).remove()


def _needless_of(directory: Place, trial: TrialHistory) -> list[Place]:
    """The checkpoints of an ended trial beside that of its best epoch; none where this one is not there as a whole."""
    found = {checkpoint.epoch_of(path): path for path in (directory / TRIALS / trial.id).glob("epoch-[0-9]*")}
    best = found.get(trial.best_epoch or 0)
    if best is None or not (best / checkpoint.MANIFEST).exists():
        return []
    return [path for path in found.values() if path != best]


def _size(folder: Place) -> int:
    return sum(_sizes(folder))


def _sizes(folder: Place) -> Iterator[int]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield int(path.stat().st_size)
