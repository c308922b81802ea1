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
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tuner.errors import TunerError, main

if TYPE_CHECKING:  # `--help` needs no torch
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from tuner.export import Exported

HEADER = ("VideoId", "LabelConfidencePairs")
TOP_K, BATCH_SIZE = 20, 1024

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
    for ids, features_ND in _decoded(shards, exported):
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


def _decoded(shards: Sequence[str], exported: Exported) -> Iterator[tuple[list[bytes], NDArray[Any]]]:
    """Ids and features of every shard, the next one decoded meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        coming = thread.submit(_decode, shards[0], exported)
        for following in shards[1:]:
            shard = coming.result()
            coming = thread.submit(_decode, following, exported)
            yield shard
        yield coming.result()


def _decode(shard: str, exported: Exported) -> tuple[list[bytes], NDArray[Any]]:
    import numpy as np

    from data.tfrecord import decode_shard

    videos = decode_shard(shard, exported.schema, require_labels=False)
    with np.errstate(over="ignore"):  # found and named below
        # Rounded as the cache rounds what the model was trained and is evaluated on.
        features_ND = videos.features_ND.astype(exported.dtype)
    if not np.isfinite(features_ND).all():
        # Told the type, the decoder finds the record and the words.
        decode_shard(shard, exported.schema, require_labels=False, out=features_ND)
    return videos.ids.tolist(), features_ND


def _logits(exported: Exported, features_BD: NDArray[Any], device: torch.device) -> Tensor:
    import torch

    from tuner.precision import autocast

    with torch.inference_mode(), autocast(device, exported.precision):
        logits_BC: Tensor = exported.model(torch.from_numpy(features_BD).to(device))
    return logits_BC


def _row(id: bytes, classes: Iterable[int], probabilities: Iterable[float]) -> Row:
    pairs = " ".join(f"{label} {share:.6g}" for label, share in zip(classes, probabilities, strict=True))
    return id.decode(errors="surrogateescape"), pairs


@contextmanager
def replacing(output: Path) -> Iterator[TextIO]:
    """A text file that becomes `output` (compressed if that ends in .gz) when the block ends well, and else vanishes.

    Raises:
        TunerError: it cannot be written there.
    """
    if output.is_dir() or not output.parent.is_dir():
        reason = "is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise TunerError(f"{output}: cannot be written: {reason}")
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    open_text: Any = gzip.open if output.suffix == ".gz" else open
    try:
        with open_text(unfinished, "wt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(unfinished, output)
    except OSError as error:
        raise TunerError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


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
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a folder that tuner.best --export wrote")
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="shards; they need no labels")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".csv, or .csv.gz to compress it")
    parser.add_argument("--top-k", type=_positive, default=TOP_K, metavar="K", help="classes a video; default: 20")
    parser.add_argument("--batch-size", type=_positive, default=BATCH_SIZE, metavar="B", help="default: %(default)s")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    options = parser.parse_args(arguments)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data.cache import find_shards
    from tuner.export import choose_device, load_model

    device = choose_device(options.device)
    exported = load_model(options.model, device)
    shards = find_shards(options.data)
    start, num_videos = time.monotonic(), 0
    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        replacing(options.output) as file,
        Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar,
    ):
        task = bar.add_task("shards", total=len(shards))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for rows in predict(exported, shards, device=device, top_k=options.top_k, batch_size=options.batch_size):
            writer.writerows(rows)
            num_videos += len(rows)
            bar.update(task, advance=1, description=f"{num_videos:,} videos, shards")
    seconds = time.monotonic() - start
    rate = num_videos / max(seconds, 1e-9)
    print(f"{options.output}: {num_videos:,} videos in {seconds:.1f} s ({rate:,.0f} videos/s)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, but got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(run))
