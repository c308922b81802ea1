"""TPE that a long search does not slow down: it looks at the best trials and at the newest ones.

Optuna's TPE compares the density of the best trials (a tenth of them, 25 at the most) with that of all others, and
weighs the older of these less. Its cost grows with their number: half a second a suggestion at 10,000 trials. Here the
best are the best of the whole search still, and the others the newest HISTORY; up to there nothing is left out.
"""

from collections.abc import Collection, Container
from heapq import nlargest
from typing import Any

import scipy.special
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe import _truncnorm
from optuna.trial import FrozenTrial, TrialState

# Three quarters of a suggestion with a whole-number parameter: Optuna takes this logarithm of one number after another
# in Python, scipy of all at once, and to the last digits the same (tests/search/test_tpe.py).
_truncnorm._log_ndtr = scipy.special.log_ndtr

# The newest finished trials, and at the most as many running ones, that a suggestion is made from.
HISTORY = 250
# TPE never counts more than these among the best.
BEST = 25


class RecentTPE(TPESampler):
    """Optuna's TPE on a bounded view of the study."""

    def __init__(self, conditional: Collection[str], *, seed: int, constant_liar: bool) -> None:
        """Be seeded for one suggestion.

        Args:
            conditional: parameters that only some trials have: each is drawn by itself, the others together.
            seed: of the random numbers.
            constant_liar: keep away from the trials that are still running.
        """
        super().__init__(seed=seed, constant_liar=constant_liar)
        self._conditional = conditional

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together; it is what Optuna asks a sampler first about a trial."""
        self._view = _View(study)
        every = next(iter(self._view.trials), trial).distributions
        names = (name for name in sorted(every) if name not in self._conditional and not every[name].single())
        return {name: every[name] for name in names}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of these."""
        return super().sample_relative(self._view, trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of one of the others."""
        return super().sample_independent(self._view, trial, param_name, param_distribution)  # type: ignore[arg-type]


class _View:
    """A study that shows some of its trials."""

    def __init__(self, study: Study) -> None:
        self._study = study
        every = study.get_trials(deepcopy=False)
        best = nlargest(
            BEST, (t for t in every if t.state == TrialState.COMPLETE), key=lambda trial: trial.value or 0.0
        )
        seen = {trial.number: trial for trial in best}
        left = {TrialState.COMPLETE: HISTORY, TrialState.RUNNING: HISTORY}
        for trial in reversed(every):
            if left.get(trial.state):
                left[trial.state] -= 1
                seen[trial.number] = trial
            if not left[TrialState.COMPLETE]:
                break
        self.trials = [seen[number] for number in sorted(seen)]

    # What TPE reads trials by; optuna has no public name for it.
    def _get_trials(
        self, deepcopy: bool = False, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self.trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
