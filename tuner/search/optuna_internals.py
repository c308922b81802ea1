"""Everything of Optuna that this project uses and that Optuna does not publish. No other file may.

Each hook says what it is for, what breaks without it, and what the public way would be. A contract test
(tests/search/test_optuna_internals.py) checks each of them against the installed Optuna and names the hook that an
upgrade has changed.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import scipy.special
from optuna import Study
from optuna.samplers._tpe import _truncnorm
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


def speed_up_tpe() -> None:
    """Have TPE compute the logarithms of the normal distribution with scipy.

    Optuna computes them number by number in Python, which takes three quarters of the time of a suggestion with a
    whole-number parameter; scipy computes them for the whole array, and the results are equal but for the last digits.
    Without it suggestions take about four times as long, and their last digits differ from those of earlier searches.
    The public way: none.
    """
    _truncnorm._log_ndtr = scipy.special.log_ndtr


class PartOfStudy:
    """A study of which a sampler sees some of the trials.

    For a TPE whose time does not grow with the length of the search. Without it a suggestion takes half a second after
    10,000 trials. The public way: none; a second study with these trials alone would number them anew, and a sampler
    distinguishes the trial that it draws for from the others by its number.
    """

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        """Show `trials` of `study`, in their order."""
        self._study, self.trials = study, trials

    # Samplers of Optuna read the trials with this method.
    def _get_trials(
        self, deepcopy: bool = False, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self.trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


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
