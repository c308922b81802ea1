"""Shards -> a csv of the best classes of every video, by an exported model.

    python -m tuner.predict MODEL_DIR --data 'GLOB' --output predictions.csv [--top-k 20]

    VideoId,LabelConfidencePairs
    u93s,12 0.987654 3 0.5 77 0.0312345

One row a video, in the order of shards and records; its classes best first, each with its probability. Shards are
decoded one after the other, the next one while the model scores the last, so their number does not matter; labels in
them are not looked at. Equal logits go to the lower class first, as in the metrics.

Shapes   B videos in the batch   D features   C classes   K = min(top_k, C)
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import main
from tuner.streaming import BATCH_SIZE, Count, decoded, positive, replacing

if TYPE_CHECKING:  # `--help` needs no torch
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from tuner.export import Exported

HEADER = ("VideoId", "LabelConfidencePairs")
TOP_K = 20

Row = tuple[str, str]  # a video's id and its pairs, as in the csv


def predict(
    exported: Exported,
    shards: Sequence[str],
    *,
    device: torch.device,
    top_k: int = TOP_K,
    batch_size: int = BATCH_SIZE,
) -> Iterator[list[Row]]:
    """The rows of one shard after the other.

    Raises:
        ShardError: a shard is damaged or does not fit the model.
    """
    for ids, features_ND in decoded(shards, exported):
        rows: list[Row] = []
        for first in range(0, len(ids), batch_size):
            batch = slice(first, first + batch_size)
            classes_BK, probabilities_BK = best_classes(_logits(exported, features_ND[batch], device), top_k)
            rows += map(_row, ids[batch], classes_BK.tolist(), probabilities_BK.tolist())
        yield rows


def best_classes(logits_BC: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best classes of every video, best first, ties by class index.

    Returns:
        classes_BK (int64) and their probabilities_BK (float64).
    """
    import torch

    logits_BC = logits_BC.float() + 0.0  # -0 becomes 0
    # One integer for both: the logit's bits, made to sort as it does, above the class, counted down. topk alone leaves
    # the order of equal logits open, and in bf16 many are equal.
    bits_BC = logits_BC.view(torch.int32).long()
    ordered_BC = torch.where(bits_BC < 0, bits_BC ^ 0x7FFF_FFFF, bits_BC)
    num_classes = logits_BC.shape[1]
    keys_BC = (ordered_BC << 32) + torch.arange(num_classes - 1, -1, -1, device=logits_BC.device)
    keys_BK = keys_BC.topk(min(top_k, num_classes), dim=1).values
    classes_BK = num_classes - 1 - (keys_BK & 0xFFFF_FFFF)
    return classes_BK, logits_BC.gather(1, classes_BK).double().sigmoid()


def _logits(exported: Exported, features_BD: NDArray[Any], device: torch.device) -> Tensor:
    import torch

    from tuner.precision import autocast

    with torch.inference_mode(), autocast(device, exported.precision):
        logits_BC: Tensor = exported.model(torch.from_numpy(features_BD).to(device))
    return logits_BC


def _row(id: bytes, classes: Iterable[int], probabilities: Iterable[float]) -> Row:
    pairs = " ".join(f"{label} {share:.6g}" for label, share in zip(classes, probabilities, strict=True))
    return id.decode(errors="surrogateescape"), pairs


def run(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ModelFolderError: MODEL_DIR cannot be used.
        DataError: no shard matches, or one is damaged or does not fit the model.
        TunerError: the output cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.predict", description="Write the best classes of every video by an exported model."
    )
    parser.add_argument("model", metavar="MODEL_DIR", help="what tuner.best --export wrote: a folder or its URL")
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="shards; they need no labels")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".csv, or .csv.gz to compress it")
    parser.add_argument("--top-k", type=positive, default=TOP_K, metavar="K", help="classes a video; default: 20")
    parser.add_argument("--batch-size", type=positive, default=BATCH_SIZE, metavar="B", help="default: %(default)s")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    options = parser.parse_args(arguments)

    from data.cache import find_shards
    from tuner.export import choose_device, load_model
    from tuner.paths import place

    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device)
    shards = find_shards(options.data)
    open_text: Any = gzip.open if options.output.suffix == ".gz" else open
    with (
        replacing(options.output) as unfinished,
        open_text(unfinished, "wt", encoding="utf-8", errors="surrogateescape", newline="") as file,
        Count(options.output, len(shards)) as count,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for rows in predict(exported, shards, device=device, top_k=options.top_k, batch_size=options.batch_size):
            writer.writerows(rows)
            count.shard(len(rows))
    count.say()


if __name__ == "__main__":
    sys.exit(main(run))
