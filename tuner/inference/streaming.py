"""What the commands share that write one row for every video: shards decoded ahead, output whole or not at all.

Their number does not matter: one shard is scored and written while the next one is decoded.
"""

from __future__ import annotations

import csv
import gzip
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import ConfigError

if TYPE_CHECKING:  # `--help` needs no torch
    import torch
    from torch import Tensor

    from data.batches import Batches
    from data.tfrecord.shards import DecodedShard
    from tuner.export.loader import ExportedModel

BATCH_SIZE = 1024


def decoded(shards: Sequence[str], exported: ExportedModel) -> Iterator[DecodedShard]:
    """Every shard, with its features as the model was trained on them, the next one decoded meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        coming = thread.submit(_decode, shards[0], exported)
        for following in shards[1:]:
            shard = coming.result()
            coming = thread.submit(_decode, following, exported)
            yield shard
        yield coming.result()


def _decode(path: str, exported: ExportedModel) -> DecodedShard:
    import numpy as np

    from data.frames import decode
    from data.tfrecord.shards import decode_shard

    shard = decode(path, exported.schema, require_labels=False)
    if exported.schema.level != "video":
        return shard
    with np.errstate(over="ignore"):  # found and named below
        # Rounded as the cache rounds what the model was trained and is evaluated on.
        features_ND = shard.features_ND.astype(exported.dtype)
    if not np.isfinite(features_ND).all():
        # Told the type, the decoder finds the record and the words.
        decode_shard(path, exported.schema, require_labels=False, out=features_ND)
    return replace(shard, features_ND=features_ND)


def batches_of(shard: DecodedShard, exported: ExportedModel, batch_size: int, device: torch.device) -> Batches:
    """Its videos in order, at most `batch_size` at a time, fewer where their frames would take too much memory."""
    from data.batches import Batches
    from tuner.training.evaluation import batch_size_of

    batch_size = min(batch_size, batch_size_of(exported.schema))
    return Batches(shard, batch_size=batch_size, shuffle=False, device=device)


def open_text(path: Path, mode: str, newline: str = "") -> Any:
    """A file of text, plain or .gz, with ids of any bytes: those that are not UTF-8 come back as they were."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, mode, encoding="utf-8", errors="surrogateescape", newline=newline)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Tell what is wrong with a file that is read here: `what`, which names it, and the reason.

    Raises:
        ConfigError: it is missing, cut short, or not what it should be.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{what}: {getattr(error, 'strerror', None) or error}") from error


class Count:
    """Counts the videos that are written, with a bar of the shards on a terminal, and says in the end how fast."""

    def __init__(self, output: Path, num_shards: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._output, self._start, self._num_videos = output, time.monotonic(), 0
        stderr = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._bar.add_task("shards", total=num_shards)

    def __enter__(self) -> Count:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self._bar.stop()

    def shard(self, num_videos: int) -> None:
        """A shard is written."""
        self._num_videos += num_videos
        self._bar.update(self._task, advance=1, description=f"{self._num_videos:,} videos, shards")

    def say(self, what: str = "videos") -> None:
        """The last line."""
        seconds = time.monotonic() - self._start
        rate = self._num_videos / max(seconds, 1e-9)
        print(f"{self._output}: {self._num_videos:,} {what} in {seconds:.1f} s ({rate:,.0f} {what}/s)")


def sortable(scores: Tensor) -> Tensor:
    """Integers, int64 in the range of int32, that sort as these scores do, -0 as 0: their bits as float32."""
    import torch

    bits = (scores.float() + 0.0).view(torch.int32).long()  # -0 becomes 0
    return torch.where(bits < 0, bits ^ 0x7FFF_FFFF, bits)
