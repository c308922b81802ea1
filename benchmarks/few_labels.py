"""Compare four ways to train with few labels by their GAP; prints the table of docs/contrastive.md.

    python benchmarks/few_labels.py [--data DIR] [--state DIR]

Each way gets, for each share of the labels, 6 trials on one seed; their score is measured on a tenth of the training
videos, which is held out. Then the best settings are trained on 3 seeds and scored once on the validation videos. The
ways and their settings are in few_labels.yaml. Every finished cell of the table is stored in --state; after an
interruption, the command resumes with the next cell. The folder also holds the pretrained encoders, one for each seed,
which both ways that need one use for all shares of the labels.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from card import show, spread
from torch import Tensor, nn

from data.batches import sample_rows
from models.layers import Normalize
from tuner.cli import main
from tuner.config.experiment import Experiment, load
from tuner.console import describe_seconds
from tuner.storage.local import replacing
from tuner.training.contrastive import ridge
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.dataset import LABEL_SEED, Dataset, open_dataset
from tuner.training.evaluation import BATCH_SIZE, evaluate
from tuner.training.pipelines import train as train_trial

HERE = Path(__file__).resolve().parent
WAYS = {
    "linear": "linear on the features (logistic or ridge)",
    "scratch": "fused MLP from scratch",
    "probe": "pretrain + linear probe",
    "fine_tune": "pretrain + fine-tuning",
}
FRACTIONS = (0.01, 0.1, 1.0)
TRIALS, SEEDS = 6, (1, 2, 3)
HELD_OUT, HELD_OUT_SEED = 0.1, 99
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trained trial: the GAP of every epoch that it reported, by number. Ridge on the features is epoch 0."""

    gaps: dict[int, float]
    seconds: float

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best GAP."""
        return max(self.gaps, key=lambda epoch: (self.gaps[epoch], -epoch))


def run(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/few_labels.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "yt8m", metavar="DIR")
    parser.add_argument("--state", type=Path, default=HERE.parent / "storage" / "few_labels", metavar="DIR")
    parser.add_argument("--settings", type=Path, default=HERE / "few_labels.yaml", metavar="YAML")
    options = parser.parse_args(arguments)
    os.environ["YT8M_SMALL_DIR"] = str(options.data.resolve())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options.state.mkdir(parents=True, exist_ok=True)

    started, cells = time.monotonic(), {}
    for way in WAYS:
        for fraction in FRACTIONS:
            experiment = load(options.settings, f"{way}_{100 * fraction:g}")
            cells[way, fraction] = cell(options.state, experiment, fraction)
    rows = [["GAP@20 on validate", *(f"{100 * fraction:g} % of the labels" for fraction in FRACTIONS)]]
    rows += [[name, *(spread(cells[way, fraction]["scores"]) for fraction in FRACTIONS)] for way, name in WAYS.items()]
    for first, *others in rows:
        print(
            f"| {' | '.join([first, *others])} |" + ("\n" + "|---" * len(rows[0]) + "|" if first == rows[0][0] else "")
        )
    print()
    seconds = sum(found["seconds"] for found in cells.values())
    show(
        "few_labels",
        f"{TRIALS} trials on one seed for every cell, then {len(SEEDS)} seeds: mean and deviation",
        rows,
        [f"{describe_seconds(seconds)} in total, {describe_seconds(time.monotonic() - started)} of it in this run"],
        {
            "seconds": round(seconds),
            "cells": {
                f"{way}_{100 * fraction:g}": {key: found[key] for key in ("scores", "epoch", "values")}
                for (way, fraction), found in cells.items()
            },
        },
    )


def cell(state: Path, experiment: Experiment, fraction: float) -> dict[str, Any]:
    """The result of a cell: read from its file, or measured now."""
    path = state / f"{experiment.name}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["experiment"] == experiment.to_yaml():
            return kept
        print(f"{experiment.name}: the settings have changed since it was measured: measured again", flush=True)
    started = time.monotonic()
    data = open_dataset(experiment.data)
    tuning = held_out(data, fraction)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3))
    trials: list[tuple[float, dict[str, Any], int]] = []
    for number in range(TRIALS):
        asked = study.ask()
        values = experiment.space.optuna(asked) if number else experiment.space.defaults()
        result = train(experiment, values, tuning, SEEDS[0], state)
        best = result.gaps[result.best_epoch]
        trials.append((best, values, result.best_epoch))
        study.tell(asked, best if number else None, state=None if number else optuna.trial.TrialState.FAIL)
        settings = "  ".join(f"{path}={value}" for path, value in experiment.space.settings(values).items())
        print(
            f"{experiment.name} trial {number}: {best:.4f} held out, epoch {result.best_epoch}, "
            f"{result.seconds:.0f} s  {settings}",
            flush=True,
        )
    _, values, epoch = max(trials, key=lambda trial: trial[0])
    whole = data.with_labels_of(sample_rows(data.train.num_videos, fraction, LABEL_SEED))
    scores = [train(experiment, values, whole, seed, state).gaps[epoch] for seed in SEEDS]
    print(f"{experiment.name}: {spread(scores)} on validate, epoch {epoch}", flush=True)
    found = {
        "experiment": experiment.to_yaml(),
        "trials": trials,
        "values": values,
        "epoch": epoch,
        "scores": scores,
        "seconds": time.monotonic() - started,
    }
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(found))
    return found


def held_out(data: Dataset, fraction: float) -> Dataset:
    """Split the training videos: a tenth to score trials on, and labels for `fraction` of the others."""
    rows = sample_rows(data.train.num_videos, HELD_OUT, HELD_OUT_SEED)
    others = np.setdiff1d(np.arange(data.train.num_videos), rows)
    chosen = others[sample_rows(len(others), fraction, LABEL_SEED)]
    return replace(data.with_labels_of(chosen), validate=data.train, validate_rows=rows)


def train(experiment: Experiment, values: dict[str, Any], data: Dataset, seed: int, state: Path) -> Run:
    """Train one trial on one seed; for a linear model, ridge regression in closed form counts as epoch 0."""
    trial = experiment.trial_config(values)
    started, gaps = time.monotonic(), {}
    if experiment.name.startswith("linear"):
        gaps[0] = ridge_gap(data)
    encoder_store = EncoderStore(directory=state / "encoders", trial_id=f"{experiment.name} seed {seed}")
    for progress in train_trial(trial, data, device=CPU, seed=seed, encoder_store=encoder_store):
        gaps[progress.epoch] = progress.metrics["gap"]
    return Run(gaps=gaps, seconds=time.monotonic() - started)


class Standardised(nn.Module):
    """An encoder without weights: it standardises the features."""

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        self.normalize = Normalize(data.statistics.mean_D, data.statistics.variance_D)
        self.width = data.sizes.width

    def forward(self, features_BD: Tensor) -> Tensor:
        """Standardise features [B, D]."""
        standardised_BD: Tensor = self.normalize(features_BD)
        return standardised_BD


def ridge_gap(data: Dataset) -> float:
    """GAP of ridge regression on the standardised features, with the penalty chosen by leave-one-out."""
    encoder = Standardised(data)
    probe = ridge.fit(encoder, data, width=encoder.width, device=CPU, precision="fp32")
    head = nn.Linear(encoder.width, data.sizes.num_classes)
    head.load_state_dict({"weight": probe.weight_CH, "bias": probe.bias_C})
    return evaluate(nn.Sequential(encoder, head), data.validate_batches(BATCH_SIZE, CPU), "fp32")["gap"]


if __name__ == "__main__":
    sys.exit(main(run))
