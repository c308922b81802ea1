"""Finds a trial of an earlier search: its experiment, its values and its number (`tuner.train --trial`)."""

from pathlib import Path
from typing import Any

from tuner.config.experiment import Experiment
from tuner.errors import SearchError
from tuner.storage import journal, searches
from tuner.storage.place import Place
from tuner.tracking.tracker import trial_of_run
from tuner.tracking.uri import choose_uri


def find(name: str, storage: Place, tracking_uri: str | None, file: Path) -> tuple[Experiment, dict[str, Any], int]:
    """Look up a trial by its trial_id, or by the id of its MLflow run.

    Args:
        name: the trial_id, or the id of the run.
        storage: where searches are kept.
        tracking_uri: of MLflow, which is asked where the storage does not know `name`; None: the default.
        file: experiments.yaml, whose folder relative paths refer to.

    Returns:
        The experiment as its search ran it, the trial's values, and its number.

    Raises:
        SearchError: neither the storage nor MLflow has such a trial.
    """
    found = _in_storage(name, storage, file)
    if found is None:
        trial_id = trial_of_run(name, choose_uri(tracking_uri, None, file.parent))
        found = _in_storage(trial_id, storage, file) if trial_id else None
    if found is None:
        raise SearchError(f"no trial {name}: neither a trial_id of a search in {storage} nor the MLflow run of one")
    return found


def _in_storage(trial_id: str, storage: Place, file: Path) -> tuple[Experiment, dict[str, Any], int] | None:
    for directory in searches.folders(storage):
        search = journal.read(directory)
        if trial_id in search.trials:
            trial = search.trials[trial_id]
            text = (directory / "experiment.yaml").read_text()
            return Experiment.from_yaml(text, search.experiment, file), trial.values, trial.number
    return None
