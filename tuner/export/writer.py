"""Write a finished trial, or an ensemble of several trials, to a model folder that needs nothing else of the search.

`FORMATS` lists everything that is written; tuner/export/layout.py describes the files. What was written is read back
and compared with the model before the folder appears.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from models.ensemble import Ensemble
from tuner.config.experiment import Experiment
from tuner.errors import NothingToExport
from tuner.export import encoder_and_probe, metadata, model_card, torch_export, weights
from tuner.export.checkpoints import best_checkpoint, load_checkpoint, read_statistics
from tuner.export.formats import Contents, Format
from tuner.export.layout import CHECKSUMS, CONFIG, FORMAT_VERSION, check_target, describe_trial, write_checksums
from tuner.export.read_back import compare
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.storage.stores import at
from tuner.training.checkpoint import epoch_of

# What is written to a model folder, in this order. SHA256SUMS follows at the end.
FORMATS: tuple[Format, ...] = (
    weights.FORMAT,
    torch_export.FORMAT,
    encoder_and_probe.FORMAT,
    metadata.STATISTICS_SAFETENSORS,
    metadata.CONFIG_JSON,
    metadata.METRICS_JSON,
    metadata.TRIAL_YAML,
    metadata.CLASSES_CSV,
    model_card.FORMAT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelToExport:
    """A model, and what its folder says about it."""

    model: nn.Module  # in eval mode, on the CPU, without gradients
    trials: Sequence[TrialHistory]  # the trial, or the members of the ensemble
    config: Mapping[str, Any]  # its entries of config.json: model, precision and, unless it is an ensemble, trial
    scores: Mapping[str, Mapping[str, float]]  # by split
    float16: bool = False  # whether weight matrices are stored as float16; `round_to_float16` has rounded them before


def export_best(
    folder: Place,
    *,
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    class_names: Sequence[str] | None,
    print_line: Callable[[str], None] = print,
) -> None:
    """Export the best finished trial; if none of its checkpoints is undamaged, the next best trial, and so on.

    See `export_trial` for the arguments and errors.
    """
    for number, trial in enumerate(search.finished, start=1):
        try:
            export_trial(
                folder,
                search_directory=search_directory,
                experiment=experiment,
                search=search,
                trial=trial,
                metrics=search.metrics_on_whole_splits(trial),
                class_names=class_names,
                print_line=print_line,
            )
            return
        except NothingToExport as error:
            if number == len(search.finished):
                raise
            following = search.finished[number]
            print_line(f"{error}; the next best trial is trial {following.number:03d} with GAP {following.score:.4f}")


def export_trial(
    folder: Place,
    *,
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    trial: TrialHistory,
    metrics: Mapping[str, Mapping[str, float]],
    class_names: Sequence[str] | None,
    print_line: Callable[[str], None] = print,
) -> None:
    """Export the model of one trial.

    Args:
        folder: the model folder. It appears complete or not at all; an older export of the same trial is replaced.
        search_directory: the folder of the search, with the trial's checkpoints.
        experiment: the experiment, as the search ran it.
        search: the search.
        trial: the trial to export.
        metrics: the model's metrics on whole splits, by split; may be empty.
        class_names: by class index; None: there is no vocabulary.
        print_line: prints each line of the report.

    Raises:
        NothingToExport: the trial has no undamaged checkpoint.
        CheckpointError: the checkpoint was written by a trial with other settings.
        ModelFolderError: `folder` holds something else, or what was written gives other logits than the model.
        SearchError: the search stored no statistics, and the training shards have changed since it began.
        DataError: the search stored no statistics, and the training shards cannot be read.
    """
    best = best_checkpoint(search_directory, trial, print_line)
    epoch = epoch_of(best)
    if epoch != trial.best_epoch and trial.reports[epoch]["gap"] != trial.score:
        print_line(
            f"the checkpoint of the trial's best epoch {trial.best_epoch} is missing or damaged; "
            f"exporting epoch {epoch} with GAP {trial.reports[epoch]['gap']:.4f} instead of {trial.score:.4f}"
        )
    settings = experiment.trial_config(trial.values)
    export_model(
        folder,
        ModelToExport(
            model=load_checkpoint(best, experiment, trial, torch.device("cpu")).requires_grad_(False),
            trials=[trial],
            config={
                "model": asdict(settings.model),
                "precision": settings.training.precision,
                "trial": {"number": trial.number, "id": trial.id, "epoch": epoch},
            },
            scores={**metrics, "training": {"epoch": epoch, **trial.reports[epoch]}},
        ),
        search_directory=search_directory,
        experiment=experiment,
        search=search,
        class_names=class_names,
        print_line=print_line,
    )


def export_model(
    folder: Place,
    exported: ModelToExport,
    *,
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    class_names: Sequence[str] | None,
    print_line: Callable[[str], None] = print,
) -> None:
    """Write a model folder, read it back, and compare its logits with the model's.

    An older export of the same trial, or of an ensemble of the same search, is replaced. See `export_trial` for the
    arguments and errors.
    """
    folder = folder.absolute()
    trial = None if isinstance(exported.model, Ensemble) else exported.trials[0]
    replaces = check_target(folder, search, trial)
    contents = Contents(
        model=exported.model,
        schema=experiment.data.schema,
        config=_config(experiment, search, exported),
        scores=exported.scores,
        statistics=read_statistics(search_directory, experiment, search),
        trial_yaml=metadata.trial_yaml(experiment, exported.trials),
        class_names=class_names,
        float16=exported.float16,
    )
    formats = [one for one in FORMATS if one.applies(contents)]
    with at(folder).publish(first=CONFIG, last=CHECKSUMS) as staging:
        for one in formats:
            one.write(staging, contents)
        write_checksums(staging)
        for path in staging.iterdir():  # safetensors lets only the owner read its files
            path.chmod((staging / CONFIG).stat().st_mode)
        forms = {one.name: one.read_back(staging) for one in formats if one.read_back is not None}
        print_line(compare(exported.model, forms, experiment.data))
    what = "an ensemble of the same search" if trial is None else "the same trial"
    replaced = f" (replaced an earlier export of {what})" if replaces else ""
    epoch = "" if trial is None else f", epoch {exported.config['trial']['epoch']},"
    print_line(f"exported {describe_trial(trial)}{epoch} to {folder}{replaced}")


def _config(experiment: Experiment, search: SearchHistory, exported: ModelToExport) -> dict[str, Any]:
    """The content of config.json."""
    data = experiment.data
    return {
        "format": FORMAT_VERSION,
        "pipeline": experiment.pipeline,
        **exported.config,
        "weights": "float16" if exported.float16 else "float32",  # type of the matrices in model.safetensors
        "features": [{"name": name, "width": width} for name, width in data.features.items()],  # in this order
        "level": data.level,
        "max_frames": data.max_frames,
        "keys": dict(data.keys),  # in the shards, where they are not the usual ones
        "num_classes": data.num_classes,
        "dtype": data.dtype,  # features are rounded to this type, as in training
        "experiment": search.experiment,
        "search": search.id,
        "data_fingerprint": search.fingerprint,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
