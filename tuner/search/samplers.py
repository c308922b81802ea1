"""The samplers, which propose the values of the next trial: a registry by `search.sampler.kind`.

To add one, add an entry to `SAMPLERS` and its name to `SamplerConfig.kind` (tuner/config/search.py). The entry makes an
Optuna sampler for a single suggestion: give it `Request.seed`. A sampler that keeps a state of its own between two
suggestions, and not in the study, cannot be resumed. What it keeps in the study goes into the journal, which holds
numbers and text and no code.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler
from optuna.storages import InMemoryStorage

from tuner.config.distributions import Choice
from tuner.config.experiment import Experiment
from tuner.config.space import Space
from tuner.search.optuna_internals import store_no_pickle
from tuner.search.tpe import RecentTPE

optuna.logging.set_verbosity(optuna.logging.WARNING)  # its log reports each new study
store_no_pickle()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a sampler is made for: one suggestion of a search."""

    space: Space
    seed: int  # of this suggestion: it depends on `search.sampler.seed` and the trial's number alone
    search_seed: int  # `search.sampler.seed`: the same for all suggestions
    parallel: bool  # whether trials run at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A sampler, and what of a search space it models; it draws everything else at random."""

    make: Callable[[Request], BaseSampler]
    choices: bool = True  # whether it models parameters that are choices
    conditionals: bool = True  # whether it models parameters that only some trials have
    exhaustive: bool = False  # whether it tries the whole grid in order, so that nothing is drawn


def _tpe(request: Request) -> BaseSampler:
    return RecentTPE(request.space.conditional_names(), seed=request.seed, constant_liar=request.parallel)


def _random(request: Request) -> BaseSampler:
    return RandomSampler(seed=request.seed)


def _qmc(request: Request) -> BaseSampler:
    # Its seed is its scrambling, which must be the same for the whole sequence.
    return QMCSampler(
        seed=request.search_seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    )


SAMPLERS: dict[str, Sampler] = {
    "tpe": Sampler(make=_tpe),
    "random": Sampler(make=_random),
    "gp": Sampler(make=lambda request: GPSampler(seed=request.seed), conditionals=False),
    "cmaes": Sampler(
        make=lambda request: CmaEsSampler(seed=request.seed, warn_independent_sampling=False),
        choices=False,
        conditionals=False,
    ),
    "qmc": Sampler(make=_qmc, conditionals=False),
    "grid": Sampler(make=_random, exhaustive=True),
}


class Study(optuna.Study):
    """A study that remembers when a sampler stops it, because the sampler has tried every combination."""

    exhausted = False

    @classmethod
    def create(cls, storage: InMemoryStorage) -> "Study":
        """A new study in `storage`, whose scores are to be maximized. Optuna's pruners are not used."""
        name = optuna.create_study(storage=storage, direction="maximize").study_name
        return cls(name, storage, pruner=optuna.pruners.NopPruner())

    def stop(self) -> None:
        """Suggest no further trials. Optuna's own method works in `Study.optimize` alone."""
        self.exhausted = True


def make_sampler(experiment: Experiment, number: int, *, parallel: bool = False) -> BaseSampler:
    """The Optuna sampler of suggestion `number`.

    A new one is made for each suggestion, so that a suggestion depends on the seed, its number and the results so far,
    and a resumed search makes the same ones.

    Args:
        experiment: its space and its settings of the sampler.
        number: of the trial, from 0.
        parallel: whether trials run at the same time.
    """
    config = experiment.search.sampler
    request = Request(
        space=experiment.space,
        seed=(config.seed * 1_000_003 + number) % 2**32,
        search_seed=config.seed,
        parallel=parallel,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[config.kind].make(request)


def planned_values(experiment: Experiment, number: int) -> dict[str, Any] | None:
    """The values of trial `number` that no sampler draws: the defaults for trial 0, every trial of a grid; or None."""
    if is_exhaustive(experiment):
        return experiment.space.grid[number]
    return experiment.space.defaults() if number == 0 else None


def is_exhaustive(experiment: Experiment) -> bool:
    """Whether the search tries every combination of the space once, and has no trials beyond them."""
    return SAMPLERS[experiment.search.sampler.kind].exhaustive


def drawn_at_random(space: Space, kind: str) -> list[str]:
    """One sentence for each parameter of the space that the sampler does not model."""
    sampler, sentences = SAMPLERS[kind], []
    for parameter in space.parameters():
        if not sampler.choices and isinstance(parameter.distribution, Choice):
            sentences.append(f"{kind} draws {parameter.name} at random: it models numbers only, and this is a choice")
        elif not sampler.conditionals and parameter.condition:
            sentences.append(
                f"{kind} draws {parameter.name} at random: it models only what every trial has, "
                f"and this depends on {parameter.condition}"
            )
    return sentences
