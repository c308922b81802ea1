"""What a search's folder keeps for an export: the checkpoints of its trials and the statistics of its training videos.

storage/EXPERIMENT/SEARCH/trials/TRIAL/epoch-0003/     a checkpoint, written after epoch 3
storage/EXPERIMENT/SEARCH/statistics.safetensors
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from models import FeatureStatistics
from tuner.errors import CheckpointDamaged, CheckpointError, NothingToExport, SearchError
from tuner.export.layout import STATISTICS
from tuner.export.loader import model_without_weights
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.storage.searches import TRIALS
from tuner.storage.stores import at
from tuner.training import checkpoint
from tuner.training.dataset import feature_statistics

if TYPE_CHECKING:
    from tuner.config.experiment import Experiment


def best_checkpoint(
    search_directory: Place, trial: TrialHistory, print_line: Callable[[str], None] = lambda _: None
) -> Place:
    """The checkpoint of the trial's best epoch, among the checkpoints that exist and are undamaged.

    Args:
        search_directory: the folder of the search.
        trial: the trial.
        print_line: prints a sentence about each damaged checkpoint.

    Raises:
        NothingToExport: the trial has no undamaged checkpoint.
    """
    kept = _checkpoints(search_directory, trial)
    scored = [epoch for epoch in kept if epoch in trial.reports]
    for epoch in sorted(scored, key=lambda epoch: (-trial.reports[epoch]["gap"], epoch)):
        try:
            with at(kept[epoch]).download((checkpoint.MANIFEST, checkpoint.WEIGHTS)) as local:
                checkpoint.check(local, weights_only=True)
            return kept[epoch]
        except CheckpointDamaged as error:
            print_line(str(error))
    raise NothingToExport(
        f"trial {trial.number:03d} of search {search_directory.name} has no undamaged checkpoint in "
        f"{_trial_directory(search_directory, trial)} (it reported {len(trial.reports)} epochs; search.keep says how "
        "many of the best trials keep their weights)"
    )


def load_trial(
    search_directory: Place,
    experiment: Experiment,
    trial: TrialHistory,
    device: torch.device,
    print_line: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """Load the model of the trial's best epoch, in eval mode on `device`.

    Args:
        search_directory: the folder of the search.
        experiment: the experiment, as the search ran it.
        trial: the trial.
        device: where the model is placed.
        print_line: prints a sentence about each damaged checkpoint.

    Raises:
        NothingToExport: the trial has no undamaged checkpoint.
        CheckpointError: the checkpoint was written by a trial with other settings.
    """
    return load_checkpoint(best_checkpoint(search_directory, trial, print_line), experiment, trial, device)


def load_checkpoint(directory: Place, experiment: Experiment, trial: TrialHistory, device: torch.device) -> nn.Module:
    """Load the model of one checkpoint of the trial, in eval mode on `device`.

    Raises:
        CheckpointError: the checkpoint is damaged, or was written by a trial with other settings.
    """
    settings = experiment.trial_config(trial.values)
    model = model_without_weights(settings.model, experiment.data.sizes)
    try:
        with at(directory).download((checkpoint.MANIFEST, checkpoint.WEIGHTS)) as local:
            model.load_state_dict(checkpoint.load_weights(local, settings=settings.settings))
    except RuntimeError as error:
        raise CheckpointError(f"{directory}: the weights do not fit the trial's model ({error})") from error
    return model.to(device).eval()


def copy_best(search_directory: Place, trial: TrialHistory, target: Place, trial_id: str) -> None:
    """Copy the weights of the trial's best epoch into another search, as those of its trial `trial_id`.

    Raises:
        NothingToExport: the trial has no undamaged checkpoint.
    """
    best = best_checkpoint(search_directory, trial)
    names = (checkpoint.WEIGHTS, checkpoint.MANIFEST)
    copy = target / TRIALS / trial_id / best.name
    with at(best).download(names) as local, at(copy).publish(last=checkpoint.MANIFEST) as staging:
        for name in names:
            shutil.copyfile(local / name, staging / name)


def discard_training_states(search_directory: Place, trial: TrialHistory) -> None:
    """Delete everything but the weights from the checkpoints of an ended trial.

    The states of optimizer and random generators take two thirds of a checkpoint, and only a resumed trial needs them.
    """
    for directory in _checkpoints(search_directory, trial).values():
        checkpoint.discard_training_state(directory)


def keep_statistics(search_directory: Place, statistics: FeatureStatistics) -> None:
    """Store the statistics of the training videos with a search, so that an export of it needs no shards."""
    (search_directory / STATISTICS).write_bytes(save(_as_tensors(statistics)))


def read_statistics(search_directory: Place, experiment: Experiment, search: SearchHistory) -> dict[str, Tensor]:
    """Read the statistics of the training videos, or compute them from the shards if the search stored none.

    Raises:
        SearchError: the search stored none, and the training shards have changed since it began.
        DataError: the search stored none, and the training shards cannot be read.
    """
    stored = search_directory / STATISTICS
    if stored.exists():
        tensors: dict[str, Tensor] = load(stored.read_bytes())
        return tensors
    train = experiment.data.open(experiment.data.train)
    if not search.fingerprint.startswith(train.fingerprint[:16]):
        raise SearchError(
            f"the training shards have changed since search {search.id} began: restore them to export its model"
        )
    return _as_tensors(feature_statistics(train.statistics()))


def _as_tensors(statistics: FeatureStatistics) -> dict[str, Tensor]:
    tensors = {
        "num_videos": torch.tensor(statistics.num_videos),
        "mean": statistics.mean_D,
        "variance": statistics.variance_D,
        "label_counts": statistics.label_counts_C,
        "rated_counts": statistics.rated_counts_C,
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


def _trial_directory(search_directory: Place, trial: TrialHistory) -> Place:
    return search_directory / TRIALS / trial.id


def _checkpoints(search_directory: Place, trial: TrialHistory) -> dict[int, Place]:
    """The checkpoints of a trial, by epoch."""
    found: list[Place] = list(_trial_directory(search_directory, trial).glob("epoch-[0-9]*"))
    return {checkpoint.epoch_of(path): path for path in sorted(found, key=lambda path: path.name)}
