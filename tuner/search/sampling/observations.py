"""The trials of an Optuna study as arrays, for a sampler that is made anew for each suggestion."""

from bisect import insort
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState


class Observations:
    """Scores and parameters of the trials of a study that is maximized.

    They are a function of the study: `of` keeps them from one suggestion to the next, and reads only what has changed.
    """

    def __init__(self) -> None:
        """Know no trial yet."""
        self.distributions: dict[str, BaseDistribution] = {}  # of every parameter that a trial has, by name
        self.ranked: list[tuple[float, int]] = []  # minus the score and the number of each complete trial, best first
        self.complete: list[int] = []  # the numbers of the complete trials, oldest first
        self.unfinished: dict[int, FrozenTrial] = {}  # the running trials as they were read, by number
        self._num_read = self._room = 0  # the columns have room for more trials than were read
        self._columns: dict[str, np.ndarray] = {}  # a parameter as Optuna represents it, by name; nan: not in the trial

    def values(self, names: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
        """Parameters of those trials that have all of them, as Optuna represents them internally: [names, trials].

        Args:
            names: of the parameters.
            numbers: of the trials, in the order of the result.
        """
        rows, nowhere = np.array(numbers, int), np.full(self._room, np.nan)
        chosen = np.stack([self._columns.get(name, nowhere)[rows] for name in names])
        return chosen[:, ~np.isnan(chosen).any(axis=0)]

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Read the trials that are new, and those that were running. A finished trial never changes."""
        if len(trials) > self._room:
            new = np.full(len(trials), np.nan)
            self._columns = {name: np.append(column, new) for name, column in self._columns.items()}
            self._room += len(trials)
        changed = [number for number, trial in self.unfinished.items() if trials[number] is not trial]
        for number in [*changed, *range(self._num_read, len(trials))]:
            self._read(number, trials[number])
        self._num_read = len(trials)

    def _read(self, number: int, trial: FrozenTrial) -> None:
        self.unfinished.pop(number, None)
        if not trial.state.is_finished():
            self.unfinished[number] = trial
        elif trial.state == TrialState.COMPLETE:
            insort(self.ranked, (-float(trial.value or 0.0), number))
            insort(self.complete, number)
        else:
            return
        for name, distribution in trial.distributions.items():
            self.distributions[name] = distribution
            column = self._columns.setdefault(name, np.full(self._room, np.nan))
            column[number] = distribution.to_internal_repr(trial.params[name])


_KNOWN: WeakKeyDictionary[Study, Observations] = WeakKeyDictionary()


def of(study: Study) -> Observations:
    """The observations of a study, as it is now."""
    found = _KNOWN.setdefault(study, Observations())
    found.update(study.get_trials(deepcopy=False))
    return found
