"""Contract: what tuner/search/sampling/optuna_internals.py uses of Optuna is there and does what it is used for."""

import inspect
import pickle
import re

import cmaes
import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import QMCSampler, TPESampler, _cmaes
from optuna.samplers._tpe import _truncnorm
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from tuner.search.sampling import optuna_internals

SPACE = {"rate": FloatDistribution(0, 1)}


def test_speed_up_tpe_replaces_the_function_that_a_suggestion_calls_by_an_equal_one() -> None:
    optuna_internals.speed_up_tpe()
    values = np.concatenate([-np.logspace(2, -6, 200), [0.0], np.logspace(-6, 2, 200)])
    one_by_one = [_truncnorm._log_ndtr_single(value) for value in values.tolist()]
    np.testing.assert_allclose(_truncnorm._log_ndtr(values), one_by_one, rtol=1e-12, atol=1e-15)
    assert "_log_ndtr(" in inspect.getsource(_truncnorm._log_gauss_mass), "speed_up_tpe: TPE calls another function"


def study_of(number: int, storage: InMemoryStorage | None = None) -> optuna.Study:
    study = optuna.create_study(direction="maximize", storage=storage)
    for i in range(number):
        trial = optuna.trial.create_trial(params={"rate": i / number}, distributions=dict(SPACE), value=-abs(i - 10.0))
        study.add_trial(trial)
    return study


def test_part_of_study_is_all_that_tpe_reads() -> None:
    whole, few = study_of(40), study_of(40).get_trials(deepcopy=False)[5:20]
    only = optuna.create_study(direction="maximize")
    only.add_trials(few)
    suggested = []
    for study in (optuna_internals.PartOfStudy(whole, few), only):
        running = whole.get_trials(deepcopy=False)[-1]
        sampler = TPESampler(seed=3)
        suggested.append(sampler.sample_relative(study, running, {}) or None)  # type: ignore[arg-type]
        suggested.append(sampler.sample_independent(study, running, "rate", SPACE["rate"]))  # type: ignore[arg-type]
    assert suggested[:2] == suggested[2:], "PartOfStudy: TPE reads trials in another way"
    complete = optuna_internals.PartOfStudy(whole, few)._get_trials(states=(TrialState.COMPLETE,))
    assert complete == few
    parameters = inspect.signature(optuna.Study._get_trials).parameters
    mine = inspect.signature(optuna_internals.PartOfStudy._get_trials).parameters
    assert list(parameters) == list(mine), "PartOfStudy: Study._get_trials has other parameters"


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
