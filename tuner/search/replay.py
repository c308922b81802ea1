"""Finds a trial of an earlier search again: its experiment, its suggestion and its number."""

from pathlib import Path
from typing import Any

from tuner.config.experiment import Experiment
from tuner.errors import SearchError
from tuner.storage import journal, searches
from tuner.storage.place import Place
from tuner.tracking.tracker import trial_of_run
from tuner.tracking.uri import choose_uri


def find(name: str, storage: Place, tracking_uri: str | None, file: Path) -> tuple[Experiment, dict[str, Any], int]:
    """Look a trial up by its trial_id, or by the MLflow run that has it as a tag.

    Returns:
        The experiment as its search ran it, the trial's values, and its number.

    Raises:
        SearchError: neither the storage nor MLflow knows it.
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
