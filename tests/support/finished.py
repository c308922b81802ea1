"""A small finished search, made in a second without Ray: tests of export, predict and best start from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tfrecord.writer import TFRecordWriter

from data.sample import write_splits
from tuner.config.experiment import Experiment, load
from tuner.export.checkpoints import load_trial
from tuner.export.writer import export_trial
from tuner.storage import journal
from tuner.storage.journal import Journal, SearchHistory, TrialHistory
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.pipelines import train

EXPERIMENTS = """\
default: tiny
experiments:
  tiny:
    data:
      train: shards/train*.tfrecord
      validate: shards/validate*.tfrecord
      features: {mean_rgb: 24, mean_audio: 8}
      num_classes: 12
      vocabulary: vocabulary.csv
      cache_folder: cache
    model: {kind: fused_mlp, towers: {mean_rgb: 16, mean_audio: 8}, hidden: 16, dropout: {uniform: [0.2, 0.7]}}
    optimizer: {kind: adam, learning_rate: {loguniform: [1e-4, 1e-1]}}
    loss: {l2: {choice: [0, {loguniform: [1, 100]}]}}
    training: {batch_size: 32, epochs: 2, precision: fp32, seed: per_trial}
    search: {trials: 4}
"""
NAMES = [f'The "{index}"' if index != 3 else "Rock, paper" for index in range(12)]
VOCABULARY = 'Index,Count,Name\n3,7,"Rock, paper"\n' + "".join(f'{i},1,"The ""{i}"""\n' for i in range(12) if i != 3)

SLOW = {"model.dropout": 0.5, "optimizer.learning_rate": 1e-4, "loss.l2": "0"}
FAST = {"model.dropout": 0.2, "optimizer.learning_rate": 3e-2, "loss.l2": "loguniform", "loss.l2.loguniform": 5.0}

Video = tuple[bytes, np.ndarray]  # id, and the values of all features side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSearch:
    """A search of four trials: 0 and 1 are finished, 1 is the better one; 2 failed; 3 is unfinished."""

    folder: Path  # with experiments.yaml, shards/, storage/ and cache/
    experiment: Experiment
    data: Dataset

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def directory(self) -> Path:
        return self.storage / "tiny" / "20260102-030405-0001"

    @property
    def search(self) -> SearchHistory:
        return journal.read(self.directory)

    @property
    def best(self) -> TrialHistory:
        return self.search.finished[0]

    @property
    def validate(self) -> str:
        return str(self.folder / "shards" / "validate*.tfrecord")

    def load_best(self) -> torch.nn.Module:
        return load_trial(self.directory, self.experiment, self.best, torch.device("cpu"))

    def export(self, target: Path, **changes: Any) -> None:
        """Export the best trial as `tuner.best --export` does; `changes` replace arguments of the writer."""
        settings: dict[str, Any] = {
            "search_directory": self.directory,
            "experiment": self.experiment,
            "search": self.search,
            "trial": self.best,
            "metrics": {},
            "class_names": NAMES,
        }
        export_trial(target, **settings | changes)


def make_finished_search(
    folder: Path,
    experiments: str = EXPERIMENTS,
    slow: Mapping[str, Any] = SLOW,
    fast: Mapping[str, Any] = FAST,
) -> FinishedSearch:
    """Write shards, train two trials for two epochs each, and write the journal that a driver would have written."""
    (folder / "vocabulary.csv").write_text(VOCABULARY)
    (folder / "experiments.yaml").write_text(experiments)
    experiment = load(folder / "experiments.yaml", None)
    write_splits(
        folder / "shards",
        num_videos={"train": 400, "validate": 150, "test": 50},
        num_shards=3,
        num_classes=12,
        features=experiment.data.features,
        level=experiment.data.level,
        num_frames=11,
    )
    data = open_dataset(experiment.data)
    made = FinishedSearch(folder=folder, experiment=experiment, data=data)
    opened = Journal(made.directory)
    (made.directory / "experiment.yaml").write_text(experiment.to_yaml())
    opened.append(
        "search",
        version=journal.VERSION,
        id=made.directory.name,
        experiment="tiny",
        fingerprint=data.fingerprint,
        planned=4,
        tracking_uri="sqlite:///mlflow.db",
        overrides=[],
        baseline=0.25,
    )
    for number, values in enumerate((slow, fast, slow, slow)):
        states: dict[str, Any] = {"sampler_state": {}, "study_state": {}}
        opened.append(
            "suggested",
            number=number,
            id=f"trial-{number}",
            values=values,
            settings=experiment.space.settings(values),
            **states,
        )
    for number, (id, values) in enumerate({"trial-0": slow, "trial-1": fast}.items()):
        settings = experiment.trial_config(values)
        for progress in train(settings, data, device=torch.device("cpu"), seed=settings.seed(number)):
            progress.state.save(made.directory / "trials" / id / f"epoch-{progress.epoch:04d}", settings)
            opened.append("report", id=id, epoch=progress.epoch, metrics=progress.metrics)
        opened.append("finished", id=id, stopped_by=None)
    error = "TrialDiverged: the loss is not finite in epoch 1 by step 3"
    opened.append("failed", id="trial-2", error=error, cause="settings")
    opened.close()
    return made


def videos(*ids: bytes) -> list[Video]:
    """Make videos with random features of the widths that the search has."""
    return list(zip(ids, np.random.default_rng(0).normal(size=(len(ids), 32)), strict=True))


def write_shard(path: Path, videos: Iterable[Video], labels: bool = False) -> str:
    """Write the videos into one shard, with `labels` all of class 1; returns the shard's name."""
    writer = TFRecordWriter(str(path))
    for id, features_D in videos:
        record = {
            "id": (id, "byte"),
            "mean_rgb": (features_D[:24].tolist(), "float"),
            "mean_audio": (features_D[24:].tolist(), "float"),
        }
        writer.write(record | ({"labels": ([1], "int")} if labels else {}))
    writer.close()
    return str(path)
