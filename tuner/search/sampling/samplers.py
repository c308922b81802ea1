"""The samplers, which propose the values of the next trial: a registry by `search.sampler.kind`.

To add one, add an entry to `SAMPLERS` and its name to `SamplerConfig.kind` (tuner/config/search.py). The entry makes an
Optuna sampler for a single suggestion: give it `Request.seed`. A sampler that keeps a state of its own between two
suggestions, and not in the study, cannot be resumed. What it keeps in the study goes into the journal, which holds
numbers and text and no code.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler

from tuner.config.distributions import Choice
from tuner.config.experiment import Experiment
from tuner.config.space import Space
from tuner.search.sampling.optuna_internals import store_no_pickle
from tuner.search.sampling.tpe import RecentTPE

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
    # How often it may draw for one trial, until it draws what has not been tried; 0: it draws nothing at all.
    draws: int = 10


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
    "gp": Sampler(make=lambda request: GPSampler(seed=request.seed), conditionals=False, draws=2),
    "cmaes": Sampler(
        make=lambda request: CmaEsSampler(seed=request.seed, warn_independent_sampling=False),
        choices=False,
        conditionals=False,
    ),
    "qmc": Sampler(make=_qmc, conditionals=False),
    "grid": Sampler(make=_random, draws=0),
}


def make_sampler(experiment: Experiment, number: int, *, draw: int = 0, parallel: bool = False) -> BaseSampler:
    """The Optuna sampler of one draw for trial `number`.

    A new one is made for each draw, so that a suggestion depends on the seed, its number and the results so far, and a
    resumed search makes the same ones.

    Args:
        experiment: its space and its settings of the sampler.
        number: of the trial, from 0.
        draw: how many draws for this trial were refused.
        parallel: whether trials run at the same time.
    """
    config = experiment.search.sampler
    seed = seed_of(experiment, number, draw)
    request = Request(space=experiment.space, seed=seed, search_seed=config.seed, parallel=parallel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[config.kind].make(request)


def seed_of(experiment: Experiment, number: int, draw: int = 0) -> int:
    """The seed of a draw for trial `number`."""
    return (experiment.search.sampler.seed * 1_000_003 + number + draw * 1_000_000_007) % 2**32


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
