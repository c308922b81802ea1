"""The small files of a model folder: config.json, statistics.safetensors, trial.yaml, classes.csv and metrics.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tuner.config.experiment import Experiment
from tuner.config.yaml_tree import dump
from tuner.export.formats import Contents, Format
from tuner.export.layout import CLASSES, CONFIG, METRICS, STATISTICS, TRIAL
from tuner.storage.journal import TrialHistory
from tuner.training import vocabulary
from tuner.training.config import without_effect


def _write_config(folder: Path, contents: Contents) -> None:
    _write_json(folder / CONFIG, contents.config)


def _write_statistics(folder: Path, contents: Contents) -> None:
    save_file(dict(contents.statistics), folder / STATISTICS)


def _write_trial(folder: Path, contents: Contents) -> None:
    (folder / TRIAL).write_text(contents.trial_yaml, encoding="utf-8")


def _write_classes(folder: Path, contents: Contents) -> None:
    assert contents.class_names is not None
    vocabulary.write(folder / CLASSES, contents.class_names)


def _has_class_names(contents: Contents) -> bool:
    return contents.class_names is not None


def _write_metrics(folder: Path, contents: Contents) -> None:
    _write_json(folder / METRICS, contents.scores)


CONFIG_JSON = Format(name=CONFIG, write=_write_config)
STATISTICS_SAFETENSORS = Format(name=STATISTICS, write=_write_statistics)
TRIAL_YAML = Format(name=TRIAL, write=_write_trial)
CLASSES_CSV = Format(name=CLASSES, write=_write_classes, applies=_has_class_names)
METRICS_JSON = Format(name=METRICS, write=_write_metrics)


def trial_yaml(experiment: Experiment, trials: Sequence[TrialHistory]) -> str:
    """Write each trial as an experiment without distributions and with the trial's seed; the first is the default."""
    experiments = {}
    for trial in trials:
        trial_config = experiment.trial_config(trial.values)
        settings = trial_config.settings
        settings["training"]["seed"] = trial_config.seed(trial.number)
        for path in without_effect(trial_config):  # an experiment with these settings would be refused
            block, _, name = path.rpartition(".")
            (settings[block] if block else settings).pop(name)
        blocks = {"data": asdict(experiment.data), "pipeline": experiment.pipeline, **settings}
        name = experiment.name if len(trials) == 1 else f"{experiment.name}_{trial.number:03d}"
        experiments[name] = json.loads(json.dumps(blocks))  # turns tuples into lists, the only sequences of yaml
    return dump({"default": next(iter(experiments)), "experiments": experiments})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
