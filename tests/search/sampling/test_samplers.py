"""The registry of samplers, which agrees with the settings."""

from typing import get_args, get_type_hints

import pytest
from optuna.samplers import BaseSampler

from tuner.config.search import SamplerConfig
from tuner.config.space import Space
from tuner.config.yaml_tree import parse
from tuner.search.sampling.samplers import SAMPLERS, Request, drawn_at_random

SPACE = Space.build(parse("l1: {choice: [0, {loguniform: [1, 10]}]}\ndropout: {uniform: [0, 1]}", "a test"))


def test_the_settings_allow_exactly_the_samplers_that_exist() -> None:
    assert list(get_args(get_type_hints(SamplerConfig)["kind"])) == list(SAMPLERS)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_entry_makes_a_sampler_of_optuna(kind: str) -> None:
    made = SAMPLERS[kind].make(Request(space=SPACE, seed=7, search_seed=1, parallel=True))
    assert isinstance(made, BaseSampler)


def test_what_a_sampler_draws_at_random_is_said() -> None:
    conditional = "draws l1.loguniform at random: it models only what every trial has, and this depends on l1"
    assert drawn_at_random(SPACE, "tpe") == drawn_at_random(SPACE, "random") == []
    assert drawn_at_random(SPACE, "gp") == [f"gp {conditional}"]
    assert drawn_at_random(SPACE, "qmc") == [f"qmc {conditional}"]
    assert drawn_at_random(SPACE, "cmaes") == [
        "cmaes draws l1 at random: it models numbers only, and this is a choice",
        f"cmaes {conditional}",
    ]
