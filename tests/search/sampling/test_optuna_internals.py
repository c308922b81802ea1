"""Contract: what tuner/search/sampling/optuna_internals.py uses of Optuna is there and does what it is used for."""

import inspect
import pickle
import re

import cmaes
import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import QMCSampler, _cmaes
from optuna.storages import InMemoryStorage

from tuner.search.sampling import optuna_internals

SPACE = {"rate": FloatDistribution(0, 1)}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_study_state_carries_the_position_of_qmc_into_another_study() -> None:
    def study() -> tuple[optuna.Study, optuna_internals.StudyState]:
        storage = InMemoryStorage()
        made = optuna.create_study(storage=storage, sampler=QMCSampler(seed=1, scramble=True))
        return made, optuna_internals.StudyState(storage, made)

    def next_of(made: optuna.Study) -> float:
        trial = made.ask(dict(SPACE))
        made.tell(trial, 1.0)
        return float(trial.params["rate"])

    whole, state = study()
    for _ in range(4):
        next_of(whole)
    kept = state.read()
    assert kept, "StudyState: QMC stores its position somewhere else"
    resumed, restored = study()
    restored.restore(kept)
    resumed.add_trials(whole.get_trials(deepcopy=False))
    assert next_of(resumed) == next_of(whole)


def test_the_sampler_of_cmaes_pickles_nothing_but_its_optimizer_which_is_kept_as_numbers() -> None:
    optuna_internals.store_no_pickle()
    source = inspect.getsource(_cmaes)
    used = set(re.findall(r"\bpickle\.(\w+)\((.*?)\)", source))
    assert used == {("dumps", "optimizer"), ("loads", "bytes.fromhex(optimizer_str")}, "store_no_pickle: other pickles"
    assert _cmaes.CmaEsSampler()._attr_key_optimizer == optuna_internals.OPTIMIZER
    optimizer = cmaes.CMA(np.full(3, 0.4), 0.2, np.tile([0.0, 1.0], (3, 1)), n_max_resampling=30, seed=1)
    for _ in range(3):
        asked = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([(x, float(np.abs(x - 0.3).sum())) for x in asked])
        text = optuna_internals.NumbersOfCmaes.dumps(optimizer)
        read, unpickled = optuna_internals.NumbersOfCmaes.loads(text), pickle.loads(pickle.dumps(optimizer))
        for each in (read, unpickled):
            each._rng.seed(5)
        assert np.array_equal(read.ask(), unpickled.ask()), "NumbersOfCmaes: the optimizer has a further state"
        assert read.__getstate__().keys() == unpickled.__getstate__().keys()
