"""The searches in a storage: `<storage>/<experiment>/<search id>/`, each with its journal.

The id of a search begins with its local start time, so ids sort by time.
"""

import os
import re
import time
from contextlib import suppress
from glob import escape

from tuner.errors import SearchError, did_you_mean
from tuner.storage import journal
from tuner.storage.journal import FILE
from tuner.storage.place import Place

RAY = "ray"  # in the folder of a search: files of Ray, which are removed at its end
TRIALS = "trials"  # in the folder of a search: a folder for each trial, named by its id, with its checkpoints
MAX_LISTED = 10  # names that an error message lists

_TIME_FORMAT, _TIME_LENGTH = "%Y%m%d-%H%M%S", 15


def exists(directory: Place) -> bool:
    """Whether `directory` is the folder of a search: it has a journal with at least one entry."""
    path = directory / FILE
    return path.exists() and path.stat().st_size > 0


def folders(storage: Place, experiment: str | None = None) -> list[Place]:
    """The folders of the searches of an experiment, oldest first; by default of all experiments."""
    names = "*" if experiment is None else escape(experiment)
    found: list[Place] = [path.parent for path in storage.glob(f"{names}/*/{FILE}")]
    return sorted(found, key=lambda path: path.name)


def new_id(storage: Place) -> str:
    """An id for a search that starts now. It sorts behind all ids in the storage, even if the clock was set back."""
    start = time.localtime()
    newest = max((path.name for path in folders(storage)), default="")
    with suppress(ValueError):  # the newest folder has a name that this program did not give
        after_newest = time.mktime(time.strptime(newest[:_TIME_LENGTH], _TIME_FORMAT)) + 1
        start = max(start, time.localtime(after_newest))
    return f"{time.strftime(_TIME_FORMAT, start)}-{os.getpid() % 10000:04d}"


def trial_id(search_id: str, number: int) -> str:
    """The id of a trial: it is unique among all searches, and names the folder of its checkpoints."""
    return f"{search_id}-{number:04d}"


def is_id(text: str) -> bool:
    """Whether `text` has the form of a search's id."""
    return re.fullmatch(r"\d{8}-\d{6}-\d+", text) is not None


def to_continue(storage: Place, experiment: str, *, unfinished: bool) -> Place:
    """The folder of the search of an experiment that is continued where the user names none: the newest one.

    Args:
        storage: where the searches are kept.
        experiment: its name.
        unfinished: prefer the newest search that has not ended, then the newest one of which MLflow lacks something.

    Raises:
        SearchError: the experiment has no search; or the journal of a search cannot be read.
    """
    newest = folders(storage, experiment)[::-1]
    if not newest:
        raise SearchError(f"{storage} has no search of {experiment} to resume; start one without --resume")
    if not unfinished:
        return newest[0]
    untold: list[Place] = []
    for directory in newest:
        search = journal.read(directory)
        if not search.ended:
            return directory
        if not search.tracked:
            untold.append(directory)
    return (untold or newest)[0]


def of(storage: Place, experiment: str | None) -> list[Place]:
    """The folders of the searches of an experiment, oldest first; None: of all experiments.

    Raises:
        SearchError: there are none; the message suggests the most similar name of an experiment.
    """
    found = folders(storage)
    experiments = sorted({path.parent.name for path in found})
    if not experiments:
        raise SearchError(f"{storage}: no search there yet; `python tune.py` runs one, --storage DIR looks elsewhere")
    if experiment is not None and experiment not in experiments:
        hint = did_you_mean(experiment, experiments)
        raise SearchError(f"{storage}: no search of an experiment {experiment!r}{hint} ({_listed(experiments)})")
    return [path for path in found if experiment in (None, path.parent.name)]


def find(storage: Place, experiment: str | None, search_id: str | None) -> Place:
    """The folder of a search.

    Args:
        storage: where the searches are kept.
        experiment: its name; None: any.
        search_id: its id; None: the newest search.

    Raises:
        SearchError: no such search; the message lists those that exist and suggests the most similar name.
    """
    found = of(storage, experiment)
    if search_id is None:
        return found[-1]
    chosen = [path for path in found if path.name == search_id]
    if not chosen:
        ids = [path.name for path in found]
        where = f" of {experiment}" if experiment else ""
        hint = did_you_mean(search_id, ids)
        raise SearchError(f"{storage}: no search {search_id!r}{where}{hint} ({_listed(ids)})")
    return chosen[-1]


def _listed(names: list[str]) -> str:
    older = ", and older ones" if len(names) > MAX_LISTED else ""
    return f"there {'is' if len(names) == 1 else 'are'}: {', '.join(names[-MAX_LISTED:])}{older}"
