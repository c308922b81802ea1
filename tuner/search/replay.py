"""Finds a trial of an earlier search and what it was trained with (`tuner.train --trial`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.config.experiment import Experiment
from tuner.errors import SearchError
from tuner.storage import journal, searches
from tuner.storage.place import Place
from tuner.tracking.tracker import trial_of_run
from tuner.tracking.uri import choose_uri
from tuner.training.contrastive import encoder_store
from tuner.training.contrastive.encoder_store import EncoderStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trial of a search, to be trained again."""

    experiment: Experiment  # as its search ran it
    values: dict[str, Any]
    number: int
    encoders: EncoderStore  # from which it takes its encoder where the search did


def find(name: str, storage: Place, tracking_uri: str | None, file: Path) -> Replay:
    """Look up a trial by its trial_id, or by the id of its MLflow run.

    Args:
        name: the trial_id, or the id of the run.
        storage: where searches are kept.
        tracking_uri: of MLflow, which is asked where the storage does not know `name`; None: the default.
        file: experiments.yaml, whose folder relative paths refer to.

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


def _in_storage(trial_id: str, storage: Place, file: Path) -> Replay | None:
    for directory in searches.folders(storage):
        search = journal.read(directory)
        if trial_id in search.trials:
            trial = search.trials[trial_id]
            return Replay(
                experiment=Experiment.stored(directory, search.experiment, file),
                values=trial.values,
                number=trial.number,
                encoders=EncoderStore(directory=storage / encoder_store.FOLDER, trial_id=trial_id, takes_own=False),
            )
    return None
