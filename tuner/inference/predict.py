"""Score shards with an exported model, and write the best classes of every video.

    VideoId,LabelConfidencePairs
    u93s,12 0.987654 3 0.5 77 0.0312345

The csv has one row for each video, in the order of shards and records. A row lists the best classes first, each with
its probability. Another model can learn from the same predictions in a .safetensors file (tuner/training/teacher.py).

With names, the csv is for people: one row for each prediction.

    VideoId,Index,Name,Probability
    u93s,12,Guitar,0.987654

Shapes   N videos of a shard   B videos in the batch   C classes   K = min(top_k, C)
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tuner.errors import TunerError
from tuner.export.loader import ExportedModel
from tuner.inference.predictions import HEADER, TOP_K, printable
from tuner.inference.ranking import best_classes
from tuner.inference.streaming import BATCH_SIZE, batches_of, decoded_blocks
from tuner.inference.text_files import open_text
from tuner.training import teacher

HEADER_OF_NAMES = ("VideoId", "Index", "Name", "Probability")


class PredictedShard(NamedTuple):
    """The predictions for the videos of one shard, or of a block of a large one."""

    ids: list[bytes]
    classes_NK: NDArray[np.int64]  # best first
    probabilities_NK: NDArray[np.float64]


def predict(
    exported: ExportedModel,
    shards: Iterable[str],
    *,
    device: torch.device,
    top_k: int = TOP_K,
    batch_size: int = BATCH_SIZE,
) -> Iterator[PredictedShard]:
    """Predict the best classes of every video, one shard after the other. Labels in the shards are ignored.

    Args:
        exported: the model, on `device`.
        shards: paths or URLs of the shards.
        device: where the videos are scored.
        top_k: number of classes for each video.
        batch_size: number of videos that are scored at once; it does not change the predictions.

    Raises:
        ShardError: a shard is damaged or does not fit the model.
    """
    kept = min(top_k, exported.schema.num_classes)
    for shard in decoded_blocks(shards, exported):
        ids = shard.ids.tolist()
        classes_NK, probabilities_NK = np.empty((len(ids), kept), np.int64), np.empty((len(ids), kept))
        first = 0
        for batch in batches_of(shard, exported, batch_size, device).epoch(0):
            rows = slice(first, first := first + len(batch.rows))
            classes_BK, probabilities_BK = best_classes(exported.logits(batch), top_k)
            classes_NK[rows], probabilities_NK[rows] = classes_BK.cpu().numpy(), probabilities_BK.cpu().numpy()
        yield PredictedShard(ids, classes_NK, probabilities_NK)


def write_csv(path: Path, shards: Iterable[PredictedShard], names: Sequence[str] | None = None) -> None:
    """Write the predictions to a csv, plain or .gz, one shard after the other.

    Args:
        path: of the csv.
        shards: the predictions.
        names: of the classes, by class index: writes one row for each prediction; None: Kaggle's format.

    Raises:
        TunerError: two videos have one id, so no reader could tell their rows apart.
    """
    seen: set[bytes] = set()
    with open_text(path, "wt") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER if names is None else HEADER_OF_NAMES)
        for shard in shards:
            for id in shard.ids:
                if id in seen:
                    raise TunerError(f"{path}: two videos have the id {printable(id)}; give shards that name each once")
                seen.add(id)
            for row in zip(shard.ids, shard.classes_NK.tolist(), shard.probabilities_NK.tolist(), strict=True):
                writer.writerows([_row(*row)] if names is None else _named_rows(*row, names))


def write_teacher(path: Path, shards: Iterable[PredictedShard], exported: ExportedModel) -> None:
    """Write the predictions for another model to learn from.

    All of them are held in memory: 300 bytes for each video at K = 50.
    """
    kept = [
        (shard.ids, shard.classes_NK.astype(np.int32), shard.probabilities_NK.astype(np.float16)) for shard in shards
    ]
    config = exported.config
    members = [config["trial"]] if "trial" in config else config["model"]["members"]
    teacher.write(
        path,
        [id for ids, _, _ in kept for id in ids],
        np.concatenate([classes_NK for _, classes_NK, _ in kept]),
        np.concatenate([probabilities_NK for _, _, probabilities_NK in kept]),
        num_classes=exported.schema.num_classes,
        model={
            "trials": [member["number"] for member in members],
            **{name: config[name] for name in ("experiment", "search", "data_fingerprint")},
        },
    )


def _named_rows(
    id: bytes, classes: Iterable[int], probabilities: Iterable[float], names: Sequence[str]
) -> Iterator[tuple[str, int, str, str]]:
    for label, probability in zip(classes, probabilities, strict=True):
        yield id.decode(errors="surrogateescape"), label, names[label], f"{probability:.6g}"


def _row(id: bytes, classes: Iterable[int], probabilities: Iterable[float]) -> tuple[str, str]:
    pairs = " ".join(f"{label} {probability:.6g}" for label, probability in zip(classes, probabilities, strict=True))
    return id.decode(errors="surrogateescape"), pairs
