"""Feeding epochs without a copy of the features: shards that are decoded in every epoch, against the cache.

    python benchmarks/cache_modes.py [--videos 20000] [--frame-videos 600] [--workers 2]

Shuffled batches at video level and at frame level (300 frames), as with `data.cache: none` and `node`. By the clock,
since other processes decode. Without --data and --frame-data it writes sample shards first. `--step MS` sleeps so long
after each batch, as a host does that waits for a GPU; decoding goes on meanwhile. The last line is one JSON object;
`ratio` is the quotient of the videos per second, none / node, at the level where it is smaller.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from card import show

from data.batches import Batches
from data.cache.recipe import find_shards
from data.cache.store import Cache, open_cache
from data.errors import DataError
from data.ranges import COUNT, Range
from data.sample import write_shards
from data.schema import FEATURES, NUM_CLASSES, Schema

AIM = 0.02  # the feed of `none` decodes: a cache's only copies
LEVELS = ("video", "frame")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="glob of shards at video level; default: sample shards")
    parser.add_argument("--frame-data", help="glob of shards at frame level; default: sample shards")
    parser.add_argument("--videos", type=COUNT.whole, default=20_000, help="of the sample (default: %(default)s)")
    parser.add_argument("--frame-videos", type=COUNT.whole, default=600, help="of the sample (default: %(default)s)")
    parser.add_argument("--batch-size", type=COUNT.whole, default=256, help="default: %(default)s")
    parser.add_argument("--workers", type=COUNT.whole, help="processes that decode; default: as a search takes")
    parser.add_argument("--step", type=Range(0, 10_000).number, default=0, metavar="MS", help="default: %(default)s")
    parser.add_argument("--rounds", type=COUNT.whole, default=3, help="epochs of each, in turns (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for level in LEVELS:
            try:
                report[level] = measure(level, options, Path(folder) / level)
            except DataError as error:
                parser.error(str(error))
    report |= {"ratio": min(report[level]["ratio"] for level in LEVELS), "aim": AIM}
    report |= {"batch_size": options.batch_size, "step_ms": options.step, "rounds": options.rounds}
    tell(report)


def measure(level: Any, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Epochs of both in turns at one level; the median round of each."""
    given = options.data if level == "video" else options.frame_data
    if given is None:
        num_videos = options.videos if level == "video" else options.frame_videos
        write_shards(
            folder, num_videos=num_videos, num_shards=8, num_classes=NUM_CLASSES, seed=1, level=level, num_frames=300
        )
    shards = find_shards(given or f"{folder}/*.tfrecord")
    schema = Schema(features=FEATURES[level], num_classes=NUM_CLASSES, level=level)
    kept = open_cache(shards, schema, folder / "cache", workers=options.workers)
    # Groups of a quarter of the videos, so that the first one, which nothing hides, is no large part of the epoch.
    none = open_cache(shards, schema, folder / "cache", workers=options.workers, buffer=max(1, kept.num_videos // 4))
    seconds: dict[str, list[float]] = {"node": [], "none": []}
    for epoch in range(options.rounds):
        for name, cache in (("node", kept), ("none", none)):
            seconds[name].append(seconds_of(cache, epoch, options))
    speeds = {f"{name}_videos_per_second": round(kept.num_videos / median(took)) for name, took in seconds.items()}
    ratios = [one / other for one, other in zip(seconds["node"], seconds["none"], strict=True)]
    return {
        **speeds,
        "ratio": round(median(ratios), 3),
        "videos": kept.num_videos,
        "bytes_node": kept.num_bytes,
        "bytes_none": none.num_bytes,
    }


def seconds_of(cache: Cache, epoch: int, options: argparse.Namespace) -> float:
    """Seconds of one epoch, each of whose batches is waited for and followed by a step."""
    batches = Batches(cache, batch_size=options.batch_size, shuffle=True, seed=1)
    began = time.perf_counter()
    for _ in batches.epoch(epoch):
        time.sleep(options.step / 1000)
    return time.perf_counter() - began


def tell(report: dict[str, Any]) -> None:
    table = [["videos/s, and MB on the disk", "node", "none", "ratio", "node MB", "none MB"]]
    for level in LEVELS:
        one = report[level]
        speeds = [f"{one[f'{name}_videos_per_second']:,}" for name in ("node", "none")]
        sizes = [f"{one[f'bytes_{name}'] / 1e6:,.1f}" for name in ("node", "none")]
        table.append([f"{level} level, {one['videos']:,} videos", *speeds, str(one["ratio"]), *sizes])
    title = f"feeding shuffled batches of {report['batch_size']}, a step of {report['step_ms']:g} ms after each"
    show("cache_modes", title, table, [f"ratio {report['ratio']} (aim {AIM})"], report)


if __name__ == "__main__":
    main()
