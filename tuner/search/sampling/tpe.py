"""TPE whose time does not grow with the length of a search: it sees the best trials and the newest ones.

Optuna's TPE compares the density of the best trials (a tenth of them, at most 25) with that of all others, and gives
older ones less weight. Its time grows with the number of trials: half a second for a suggestion after 10,000.
Here the best trials are still those of the whole search, and the others are the newest HISTORY; a search with fewer
trials gets exactly Optuna's suggestions.
"""

from collections.abc import Collection
from heapq import nlargest
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from tuner.search.sampling.optuna_internals import PartOfStudy, speed_up_tpe

speed_up_tpe()

# A suggestion is based on this many of the newest finished trials, and on at most as many running ones.
HISTORY = 250
# TPE never counts more trials than these among the best.
BEST = 25


class RecentTPE(TPESampler):
    """Optuna's TPE on a limited part of the study."""

    def __init__(self, conditional: Collection[str], *, seed: int, constant_liar: bool) -> None:
        """Prepare one suggestion.

        Args:
            conditional: parameters that only some trials have. Each is drawn independently, the others together.
            seed: of the random numbers.
            constant_liar: whether to avoid the values of trials that are still running.
        """
        super().__init__(seed=seed, constant_liar=constant_liar)
        self._conditional = conditional

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together. Optuna calls this method first for every trial."""
        self._part = PartOfStudy(study, _best_and_newest(study))
        every = next(iter(self._part.trials), trial).distributions
        names = (name for name in sorted(every) if name not in self._conditional and not every[name].single())
        return {name: every[name] for name in names}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw values of the parameters that are drawn together."""
        return super().sample_relative(self._part, trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw the value of a parameter that is drawn independently."""
        return super().sample_independent(self._part, trial, param_name, param_distribution)  # type: ignore[arg-type]


def _best_and_newest(study: Study) -> list[FrozenTrial]:
    every = study.get_trials(deepcopy=False)
    best = nlargest(BEST, (t for t in every if t.state == TrialState.COMPLETE), key=lambda trial: trial.value or 0.0)
    seen = {trial.number: trial for trial in best}
    left = {TrialState.COMPLETE: HISTORY, TrialState.RUNNING: HISTORY}
    for trial in reversed(every):
        if left.get(trial.state):
            left[trial.state] -= 1
            seen[trial.number] = trial
        if not left[TrialState.COMPLETE]:
            break
    return [seen[number] for number in sorted(seen)]
