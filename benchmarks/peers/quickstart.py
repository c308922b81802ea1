"""The experiment `quickstart` as a user of PyTorch and the `tfrecord` package writes it: what both peers train.

Neither this file nor the peers import the project; benchmarks/search.py checks that their space, model and data are
those of experiments.yaml.

Shapes   B videos in the batch   D features, rgb and audio side by side   C classes
"""

import argparse
import glob
import json
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tfrecord.torch.dataset import TFRecordDataset
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from data.ranges import COUNT

NUM_CLASSES, BATCH_SIZE = 80, 128
WIDTHS, TOWERS, HIDDEN = (1024, 128), (256, 64), 256  # WIDTHS and TOWERS: of rgb and audio
DROPOUT, LEARNING_RATE, L2 = (0.2, 0.7), (3e-4, 3e-2), (1.0, 1000.0)  # the ranges
DEFAULTS = {"dropout": 0.45, "learning_rate": 1e-3, "l2_kind": "none"}  # of the first trial
GRACE, REDUCTION, SEED = 2, 3, 1
DESCRIPTION = {"labels": "int", "mean_rgb": "float", "mean_audio": "float"}

Batches = Iterable[tuple[Tensor, Tensor]]  # features_BD and labels_BC, float32


def options(description: str | None) -> argparse.Namespace:
    """The options of both peers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, metavar="GLOB")
    parser.add_argument("--validate", required=True, metavar="GLOB")
    parser.add_argument("--trials", type=COUNT.whole, default=24, help="default: %(default)s")
    parser.add_argument("--epochs", type=COUNT.whole, default=6, help="of a trial (default: %(default)s)")
    parser.add_argument("--reports", required=True, metavar="FILE", help="gets one line of JSON after every epoch")
    return parser.parse_args()


def suggest(trial: Any) -> None:
    """Draw a configuration from the space, with Optuna."""
    trial.suggest_float("dropout", *DROPOUT)
    trial.suggest_float("learning_rate", *LEARNING_RATE, log=True)
    if trial.suggest_categorical("l2_kind", ["none", "some"]) == "some":
        trial.suggest_float("l2", *L2, log=True)


# --- the data


def datasets(pattern: str) -> list[TFRecordDataset]:
    """One dataset for each shard."""
    warnings.filterwarnings("ignore", message="Number of elements in the iterator")  # shards shorter than the queue
    return [TFRecordDataset(path, None, DESCRIPTION, shuffle_queue_size=1024) for path in sorted(glob.glob(pattern))]


def collate(videos: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Put the features side by side, and write the labels out as zeros and ones."""
    features_BD = np.stack([np.concatenate([video["mean_rgb"], video["mean_audio"]]) for video in videos])
    labels_BC = torch.zeros(len(videos), NUM_CLASSES)
    for row, video in enumerate(videos):
        labels_BC[row, torch.from_numpy(video["labels"])] = 1.0
    return torch.from_numpy(features_BD), labels_BC


def in_memory(pattern: str) -> tuple[Tensor, Tensor]:
    """All videos of the shards, as one batch."""
    return collate([video for dataset in datasets(pattern) for video in dataset])


def statistics(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the model knows of the training videos: mean and scale of every feature, log-odds of every class."""
    counts_C = labels.sum(0)
    return {
        "mean": features.mean(0),
        "scale": 1 / features.std(0).clamp(min=1e-6),
        "prior": ((counts_C + 0.5) / (len(labels) - counts_C + 0.5)).log(),
        "videos": torch.tensor(len(labels)),
    }


# --- the model


class FusedMLP(nn.Module):
    """A tower for each feature, concatenated, then a joint layer and one logit per class."""

    def __init__(self, known: dict[str, Tensor], dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", known["mean"])
        self.register_buffer("scale", known["scale"])
        self.towers = nn.ModuleList(map(block, WIDTHS, TOWERS))
        self.dropout = nn.Dropout(dropout)
        self.joint = block(sum(TOWERS), HIDDEN)
        self.head = nn.Linear(HIDDEN, NUM_CLASSES)
        self.head.bias.data.copy_(known["prior"])

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] -> logits [B, C]."""
        parts = torch.split((features_BD - self.mean) * self.scale, WIDTHS, dim=1)
        towers = torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)
        return self.head(self.joint(self.dropout(towers)))


def block(inputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.Tanh())


def gap(logits: Tensor, labels: Tensor, top: int = 20) -> float:
    """Global average precision: that of the 20 highest scores of every video, in one list."""
    scores, classes = logits.topk(top, dim=1)
    order = scores.flatten().argsort(descending=True)
    hits = labels.gather(1, classes).flatten()[order]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / labels.sum().clamp(min=1))


# --- the training


def train(
    config: dict[str, Any], known: dict[str, Tensor], train: Batches, validate: Batches, epochs: int
) -> Iterator[tuple[float, float]]:
    """Train one configuration; yields the GAP of every epoch and the seconds that it took."""
    torch.manual_seed(SEED)
    model = FusedMLP(known, config["dropout"])
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    optimizer = torch.optim.Adam(model.parameters(), config["learning_rate"], fused=True)
    steps = epochs * -(-int(known["videos"]) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        for features, labels in train:
            loss = binary_cross_entropy_with_logits(model(features), labels, reduction="sum") / len(labels)
            if "l2" in config:
                loss = loss + config["l2"] / 2 * sum(matrix.square().mean() for matrix in matrices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            scored = [(model(features), labels) for features, labels in validate]
        found = gap(*(torch.cat(parts) for parts in zip(*scored, strict=True)))
        yield found, time.perf_counter() - began


def record(reports: str, trial: str, epoch: int, gap: float, seconds: float) -> None:
    """Append an epoch to the file that benchmarks/search.py reads: its end, and the seconds that it took."""
    line = {"type": "report", "time": time.time(), "id": trial, "epoch": epoch}
    with Path(reports).open("a") as file:
        file.write(json.dumps({**line, "metrics": {"gap": gap, "seconds": seconds}}) + "\n")
