"""Feeding a training loop: epochs from the cache against the tfrecord package's TFRecordDataset and a DataLoader.

    python benchmarks/feed.py [--data 'shards/train*.tfrecord'] [--videos 20000]

Both give shuffled batches of float32 features [B, 1152] and the labels in the form that their loss takes: offsets and
indices here, a dense [B, 3862] target there. One core, in CPU time. Without --data it writes sample shards first. The
last line is one JSON object; `ratio` is the quotient of the videos per second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from data.ranges import COUNT

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy start their threads

import numpy as np
import torch
from card import show
from tfrecord.torch.dataset import TFRecordDataset
from torch import Tensor
from torch.utils.data import ChainDataset, DataLoader

from data.batches import Batches
from data.cache.recipe import find_shards
from data.cache.store import Cache, open_cache
from data.errors import DataError
from data.sample import write_shards
from data.schema import NUM_CLASSES, Schema

AIM = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="glob of shards; default: sample shards")
    parser.add_argument(
        "--videos", type=COUNT.whole, default=20_000, help="of the sample shards (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=COUNT.whole, default=1024, help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=COUNT.whole, default=5, help="measurements of each, in turns (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Number of elements in the iterator")  # shards shorter than the queue
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            write_shards(folder, num_videos=options.videos, num_shards=8, num_classes=NUM_CLASSES, seed=1)
        began = time.process_time()
        try:
            shards = find_shards(options.data or str(Path(folder) / "*.tfrecord"))
            cache = open_cache(shards, Schema(), Path(folder) / "cache", workers=1)
        except DataError as error:
            parser.error(str(error))
        build_seconds = time.process_time() - began
        report = measure(cache, shards, options.batch_size, options.rounds)
    report |= {"build_videos_per_second": round(cache.num_videos / build_seconds)}
    report |= {"videos": cache.num_videos, "data": options.data or "sample"}
    report |= {"batch_size": options.batch_size, "rounds": options.rounds}
    tell(report)


def measure(cache: Cache, shards: list[str], batch_size: int, rounds: int) -> dict[str, Any]:
    """Epochs of both in turns; the median round of each."""
    batches = Batches(cache, batch_size=batch_size, shuffle=True, seed=1)
    ours, peers = [], []
    same_values(from_cache(batches, 0), from_tfrecord(shards, batch_size))
    for epoch in range(rounds):
        ours.append(seconds_per_epoch(partial(from_cache, batches, epoch), repeats=20))
        peers.append(seconds_per_epoch(partial(from_tfrecord, shards, batch_size), repeats=1))
    ratios = [peer / our for our, peer in zip(ours, peers, strict=True)]
    return {
        "ratio": round(median(ratios), 1),
        "ratio_lowest": round(min(ratios), 1),
        "aim": AIM,
        "videos_per_second": round(cache.num_videos / median(ours)),
        "tfrecord_videos_per_second": round(cache.num_videos / median(peers)),
    }


def from_cache(batches: Batches, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What a training step of ours gets: (features_BD float32, label_offsets, label_indices)."""
    for batch in batches.epoch(epoch):
        yield batch.features_BD.float(), batch.label_offsets, batch.label_indices


def from_tfrecord(shards: list[str], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What a user of the package writes: (features_BD float32, labels_BC float32)."""
    description = {"labels": "int", "mean_rgb": "float", "mean_audio": "float"}
    datasets = [TFRecordDataset(shard, None, description, shuffle_queue_size=batch_size) for shard in shards]
    return iter(DataLoader(ChainDataset(datasets), batch_size=batch_size, num_workers=0, collate_fn=collate))


def collate(videos: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Stacks the features side by side and writes the labels out as zeros and ones."""
    rgb = np.stack([video["mean_rgb"] for video in videos])
    audio = np.stack([video["mean_audio"] for video in videos])
    labels_BC = torch.zeros(len(videos), NUM_CLASSES)
    for row, video in enumerate(videos):
        labels_BC[row, torch.from_numpy(video["labels"])] = 1.0
    return torch.from_numpy(np.concatenate([rgb, audio], axis=1)), labels_BC


def seconds_per_epoch(epoch: Callable[[], Iterator[Any]], repeats: int) -> float:
    began = time.process_time()
    for _ in chain.from_iterable(epoch() for _ in range(repeats)):
        pass
    return (time.process_time() - began) / repeats


def same_values(ours: Iterator[tuple[Tensor, Tensor, Tensor]], peers: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Both must feed the same videos: sums over the epoch of every feature column, and the count of every label."""
    feature_sums_D, counts_C = torch.zeros(1152, dtype=torch.float64), torch.zeros(NUM_CLASSES, dtype=torch.int64)
    num_videos = 0
    for features_BD, _, label_indices in ours:
        feature_sums_D += features_BD.double().sum(0)
        counts_C += torch.bincount(label_indices, minlength=NUM_CLASSES)
        num_videos += len(features_BD)
    for features_BD, labels_BC in peers:
        feature_sums_D -= features_BD.double().sum(0)
        counts_C -= labels_BC.sum(0).long()
        num_videos -= len(features_BD)
    assert num_videos == 0 and not counts_C.any(), "the two feeds differ in their videos"
    assert feature_sums_D.abs().max() < 1.0, "the two feeds differ by more than float16 rounds"


def tell(report: dict[str, Any]) -> None:
    speeds = {
        "TFRecordDataset + DataLoader, every epoch": report["tfrecord_videos_per_second"],
        "the cache, every epoch": report["videos_per_second"],
        "building the cache, once": report["build_videos_per_second"],
    }
    table = [["one core", "videos/s"], *([name, f"{speed:,}"] for name, speed in speeds.items())]
    title = f"feeding {report['videos']:,} videos in batches of {report['batch_size']}"
    show("feed", title, table, [f"ratio {report['ratio']} (lowest round {report['ratio_lowest']}; aim {AIM})"], report)


if __name__ == "__main__":
    main()
