"""Shards -> the best classes of every video, by an exported model.

    python -m tuner.predict MODEL_DIR --data 'GLOB' --output predictions.csv [--top-k 20]

    VideoId,LabelConfidencePairs
    u93s,12 0.987654 3 0.5 77 0.0312345

One row a video, in the order of shards and records; its classes best first, each with its probability. An output that
ends in .safetensors is for another model to learn from (tuner/training/teacher.py), and its best 50 classes are kept.
Shards are
decoded one after the other, the next one while the model scores the last, so their number does not matter; labels in
them are not looked at. Equal logits go to the lower class first, as in the metrics.

With `--segments`, a model of frames gives the best segments of every class instead, in Kaggle's format of 2019: the
five seconds that begin at 0, 5, 10, ... of every video (tuner/inference/segments.py).

Shapes   N videos of a shard   B videos in the batch   D features   C classes   K = min(top_k, C)
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuner.cli import add_batch_size, add_data, add_device, add_model, choose_device, main, positive
from tuner.errors import ModelFolderError
from tuner.inference import segments
from tuner.inference.streaming import BATCH_SIZE, Count, batches_of, decoded, open_text, sortable
from tuner.storage.local import replacing
from tuner.training import teacher

if TYPE_CHECKING:  # `--help` needs no torch
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from tuner.export.loader import ExportedModel

HEADER = ("VideoId", "LabelConfidencePairs")
TOP_K = 20


class Predicted(NamedTuple):
    """The videos of a shard."""

    ids: list[bytes]
    classes_NK: NDArray[np.int64]  # best first
    probabilities_NK: NDArray[np.float64]


def predict(
    exported: ExportedModel,
    shards: Sequence[str],
    *,
    device: torch.device,
    top_k: int = TOP_K,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Predicted]:
    """One shard after the other.

    Raises:
        ShardError: a shard is damaged or does not fit the model.
    """
    import numpy as np

    kept = min(top_k, exported.schema.num_classes)
    for shard in decoded(shards, exported):
        ids = shard.ids.tolist()
        classes_NK, probabilities_NK = np.empty((len(ids), kept), np.int64), np.empty((len(ids), kept))
        first = 0
        for batch in batches_of(shard, exported, batch_size, device).epoch(0):
            rows = slice(first, first := first + len(batch.rows))
            classes_BK, probabilities_BK = best_classes(exported.logits(batch), top_k)
            classes_NK[rows], probabilities_NK[rows] = classes_BK.cpu(), probabilities_BK.cpu()
        yield Predicted(ids, classes_NK, probabilities_NK)


def rank_segments(
    exported: ExportedModel,
    shards: Sequence[str],
    ranking: segments.Ranking,
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> Iterator[int]:
    """Add all whole segments of every video to `ranking`; yields how many a shard had.

    Raises:
        ModelFolderError: the model takes no frames.
        ShardError: a shard is damaged or does not fit the model.
    """
    if exported.schema.level == "video":
        raise ModelFolderError(
            "--segments: the model takes features of whole videos, in which no segment can be told: "
            "give one that was trained with data.level frame or segment"
        )
    of_segments = replace(exported, schema=replace(exported.schema, level="segment"))
    for shard in decoded(shards, of_segments):
        for batch in batches_of(shard, of_segments, batch_size, device).epoch(0):
            names = shard.ids[batch.rows.cpu().numpy()].tolist()
            ranking.add([segments.Segment.of(name) for name in names], exported.logits(batch))
        yield len(shard.ids)


def best_classes(logits_BC: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best classes of every video, best first, ties by class index.

    Returns:
        classes_BK (int64) and their probabilities_BK (float64).
    """
    import torch

    num_classes = logits_BC.shape[1]
    # One integer for both: the logit's order above the class, counted down. topk alone leaves the order of equal logits
    # open, and in bf16 many are equal.
    keys_BC = (sortable(logits_BC) << 32) + torch.arange(num_classes - 1, -1, -1, device=logits_BC.device)
    keys_BK = keys_BC.topk(min(top_k, num_classes), dim=1).values
    classes_BK = num_classes - 1 - (keys_BK & 0xFFFF_FFFF)
    return classes_BK, logits_BC.gather(1, classes_BK).double().sigmoid()


def write_csv(path: Path, shards: Iterable[Predicted]) -> None:
    """Write the videos as they come, plain or .gz."""
    with open_text(path, "wt") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for shard in shards:
            writer.writerows(map(_row, shard.ids, shard.classes_NK.tolist(), shard.probabilities_NK.tolist()))


def write_teacher(path: Path, shards: Iterable[Predicted], exported: ExportedModel) -> None:
    """Write what another model is to learn from; all of it is held in memory, 300 bytes a video at K = 50."""
    import numpy as np

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


def _row(id: bytes, classes: Iterable[int], probabilities: Iterable[float]) -> tuple[str, str]:
    pairs = " ".join(f"{label} {share:.6g}" for label, share in zip(classes, probabilities, strict=True))
    return id.decode(errors="surrogateescape"), pairs


def run(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ModelFolderError: MODEL_DIR cannot be used, or not for this.
        ConfigError: the list of classes cannot be used.
        DataError: no shard matches, or one is damaged or does not fit the model.
        TunerError: the output cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.predict", description="Write the best classes of every video by an exported model."
    )
    add_model(parser)
    add_data(parser, "shards; labels are not needed")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help=".csv; .csv.gz to compress it; .safetensors for another model to learn from",
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="classes a video; default: 20, or 50 to learn from")
    add_batch_size(parser, BATCH_SIZE)
    add_device(parser)
    ranked = parser.add_argument_group("segments")
    ranked.add_argument("--segments", action="store_true", help="the best five seconds of each class, as in 2019")
    ranked.add_argument("--classes", metavar="FILE", help="a csv whose column Index names them; default: all")
    ranked.add_argument(
        "--per-class", type=positive, metavar="N", help=f"segments of each class at most; default: {segments.MOST:,}"
    )
    options = parser.parse_args(arguments)
    to_learn_from = options.output.suffix == teacher.SUFFIX
    if options.segments and (to_learn_from or options.top_k):
        parser.error("--segments are ranked for each class into a csv: leave --top-k out, and .safetensors")
    for name in ("classes", "per_class"):
        if getattr(options, name) and not options.segments:
            parser.error(f"--{name.replace('_', '-')} belongs to --segments")

    from data.cache.store import find_shards
    from tuner.export.loader import load_model
    from tuner.storage.stores import place

    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device)
    shards = find_shards(options.data)
    top_k = options.top_k or (teacher.TOP_K if to_learn_from else TOP_K)
    with replacing(options.output) as unfinished, Count(options.output, len(shards)) as count:
        if options.segments:
            num_classes = exported.schema.num_classes
            classes = segments.read_classes(options.classes, num_classes) if options.classes else range(num_classes)
            ranking = segments.Ranking(classes, options.per_class or segments.MOST)
            for number in rank_segments(exported, shards, ranking, device=device, batch_size=options.batch_size):
                count.shard(number)
            segments.write(unfinished, ranking)
            count.say("segments")
            return
        predicted = predict(exported, shards, device=device, top_k=top_k, batch_size=options.batch_size)
        if to_learn_from:
            write_teacher(unfinished, _counted(predicted, count), exported)
        else:
            write_csv(unfinished, _counted(predicted, count))
    count.say()


def _counted(shards: Iterable[Predicted], count: Count) -> Iterator[Predicted]:
    """A shard counts when the next one is asked for: then it is written."""
    for shard in shards:
        yield shard
        count.shard(len(shard.ids))


if __name__ == "__main__":
    sys.exit(main(run))
