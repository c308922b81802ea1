"""Everything of Optuna that this project uses and that Optuna does not publish. No other file may.

Each hook says what it is for, what breaks without it, and what the public way would be. A contract test
(tests/search/sampling/test_optuna_internals.py) checks each of them against the installed Optuna and names the hook
that an upgrade has changed.
"""

import json
from collections.abc import Mapping
from typing import Any

import cmaes
import numpy as np
from optuna import Study
from optuna.samplers import _cmaes
from optuna.storages import InMemoryStorage


class StudyState:
    """What samplers store with a study, such as the position of QMC in its sequence; written into the journal.

    Without it a resumed search with QMC would begin its sequence again. The public way: `Study.user_attrs`, in which
    samplers store nothing. All methods used here are methods of a public class, but their documentation reserves them
    for Optuna itself.
    """

    def __init__(self, storage: InMemoryStorage, study: Study) -> None:
        """Read and write the state of `study`, which is kept in `storage`."""
        self._storage, self._id = storage, storage.get_study_id_from_name(study.study_name)

    def read(self) -> dict[str, Any]:
        """The state now."""
        return dict(self._storage.get_study_system_attrs(self._id))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Write the state that was read in an earlier process."""
        for key, value in state.items():
            self._storage.set_study_system_attr(self._id, key, value)


# The keys under which CmaEsSampler stores its optimizer with a trial begin with this; one value for each 2,045 letters.
OPTIMIZER = "cma:optimizer"


class NumbersOfCmaes:
    """The state of the optimizer of CMA-ES as JSON, in place of the module pickle in the file of Optuna's sampler.

    Without it the journal holds a pickle, and whoever can write into the storage runs code in the next driver.
    The public way: none; the sampler stores its optimizer with the trials, and always pickles it.
    """

    @staticmethod
    def dumps(optimizer: cmaes.CMA) -> bytes:
        """The state as text: numbers, and arrays as lists."""
        state = optimizer.__getstate__()
        return json.dumps(state, default=lambda array: array.tolist()).encode()

    @staticmethod
    def loads(text: bytes) -> cmaes.CMA:
        """The optimizer with a state that `dumps` has returned; Optuna seeds its generator before each use.

        Raises:
            ValueError: the text is no such state.
        """
        state = json.loads(text)
        if not isinstance(state, dict):
            raise ValueError("the state of CMA-ES is not an object")
        state = {name: np.array(value, float) if isinstance(value, list) else value for name, value in state.items()}
        new = _like(state)
        if state.keys() != new.keys() or not all(_fits(name, value, new[name]) for name, value in state.items()):
            raise ValueError("the state of CMA-ES has other parts than its optimizer")
        optimizer = cmaes.CMA.__new__(cmaes.CMA)
        optimizer.__setstate__(state)
        return optimizer


def _like(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a new optimizer of the same size."""
    mean, weights = state.get("_mean"), state.get("_weights")
    if not (isinstance(mean, np.ndarray) and isinstance(weights, np.ndarray) and mean.size and weights.size):
        raise ValueError("the state of CMA-ES has no mean or no weights")
    size = mean.size
    bounds = np.tile([-1.0, 1.0], (size, 1))
    new = cmaes.CMA(np.zeros(size), 1.0, bounds, n_max_resampling=10 * size, population_size=weights.size)
    new.ask()  # computes the eigenvectors
    return new.__getstate__()


def _fits(name: str, value: Any, new: Any) -> bool:
    """Whether a part of a state can be that of an optimizer which began as `new`."""
    if value is None:
        return name in ("_B", "_D")  # the eigenvectors, which are computed when they are needed
    if isinstance(new, int) and name != "_g":  # the sizes; the generation counts up
        return type(value) is type(new) and value == new
    if not isinstance(value, int | float | np.ndarray) or np.shape(value) != np.shape(new):
        return False
    return name == "_funhist_values" or bool(np.isfinite(value).all())  # these are not initialised


def store_no_pickle() -> None:
    """Have CmaEsSampler write numbers into its trials, and read nothing else; see `NumbersOfCmaes`."""
    setattr(_cmaes, "pickle", NumbersOfCmaes)  # noqa: B010  a module, for mypy


def readable_state(sampler_state: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler stored with a trial, without a state of CMA-ES that is not made of numbers.

    Where it is left out, because an older version of this program pickled it, or because somebody else wrote it, the
    sampler makes it again of the trials, one generation with each suggestion.
    """
    parts = {key: value for key, value in sampler_state.items() if key.startswith(OPTIMIZER)}
    if not parts:
        return dict(sampler_state)
    try:
        NumbersOfCmaes.loads(bytes.fromhex("".join(parts[f"{OPTIMIZER}:{index}"] for index in range(len(parts)))))
        return dict(sampler_state)
    except (ValueError, KeyError, TypeError):
        return {key: value for key, value in sampler_state.items() if key not in parts}
