"""TPE whose time does not grow with the length of a search: it sees the best trials and the newest ones.

The tree-structured Parzen estimator compares the density of the best trials (a tenth of them, at most 25) with that of
all others, and gives older ones less weight. With Optuna's sampler the time of a suggestion grows with the number of
trials: half a second after 10,000. Here the best trials are still those of the whole search, and the others are the
newest HISTORY; a search with fewer trials gets the suggestions of Optuna's sampler.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from tuner.search.sampling import observations
from tuner.search.sampling.parzen import Parzen

# A suggestion is based on this many of the newest finished trials, and on at most as many running ones.
HISTORY = 250
# The best trials are this share of those, but never more than BEST.
SHARE = 0.1
BEST = 25
# So many trials have a score before the first suggestion that is not drawn at random.
STARTUP = 10
# Of so many points, drawn from the density of the best trials, the one that the others make least likely is tried.
CANDIDATES = 24


class RecentTPE(BaseSampler):
    """The TPE of Optuna on a limited part of the study."""

    def __init__(self, conditional: Collection[str], *, seed: int, constant_liar: bool) -> None:
        """Prepare one suggestion.

        Args:
            conditional: parameters that only some trials have. Each is drawn independently, the others together.
            seed: of the random numbers.
            constant_liar: whether to avoid the values of trials that are still running.
        """
        self._conditional, self._constant_liar = conditional, constant_liar
        self._rng, self._random = np.random.RandomState(seed), RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together. Optuna calls this method first for every trial."""
        self._observed = observed = observations.of(study)
        newest = observed.complete[-HISTORY:]
        best = [number for _, number in observed.ranked[:BEST]]
        seen = {*newest, *best}
        self._starts = len(seen) < STARTUP
        self._good = sorted(best[: math.ceil(SHARE * len(seen))])
        if self._constant_liar:
            oldest = newest[0] if len(newest) == HISTORY else 0
            running = sorted(observed.unfinished)[-HISTORY:]
            seen.update(number for number in running if number >= oldest and number != trial.number)
        self._others = sorted(seen.difference(self._good))
        every = observed.distributions
        names = (name for name in sorted(every) if name not in self._conditional and not every[name].single())
        return {name: every[name] for name in names}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw values of the parameters that are drawn together."""
        return {} if self._starts or not search_space else self._draw(search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw the value of a parameter that is drawn independently."""
        if self._starts:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return self._draw({param_name: param_distribution})[param_name]

    def _draw(self, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        good, others = (
            Parzen(list(space.values()), self._observed.values(list(space), numbers))
            for numbers in (self._good, self._others)
        )
        drawn = good.sample(self._rng, CANDIDATES)
        best = np.argmax(good.log_density(drawn) - others.log_density(drawn))
        values = zip(space.items(), drawn[:, best].tolist(), strict=True)
        return {name: distribution.to_external_repr(value) for (name, distribution), value in values}
