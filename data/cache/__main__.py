"""Builds or checks the cache of some shards, and prints what it holds.

python -m data.cache --data 'shards/train*.tfrecord'
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.places import check_folder, run_command
from data.ranges import COUNT, Range, told
from data.schema import FEATURES, MAX_BAD_RECORDS, MAX_FRAMES, NUM_CLASSES, Schema, parse_feature, parse_key

if TYPE_CHECKING:
    from data.cache.progress import BuildProgress
    from data.cache.store import Cache


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds or checks the cache of some shards, and prints what it holds."""
    parser = argparse.ArgumentParser(prog="python -m data.cache", description=main.__doc__)
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="shards: paths, globs or URLs")
    parser.add_argument("--level", choices=tuple(FEATURES), default="video", help="of the records; default: video")
    parser.add_argument(
        "--features",
        nargs="+",
        type=told(parse_feature),
        metavar="NAME=WIDTH",
        help="default: mean_rgb=1024 mean_audio=128, at the other levels rgb=1024 audio=128",
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        type=told(parse_key),
        metavar="NAME=KEY",
        default=[],
        help="where a record has another key for a name",
    )
    parser.add_argument("--max-frames", type=COUNT.whole, default=MAX_FRAMES, metavar="T", help="default: %(default)s")
    parser.add_argument(
        "--num-classes", type=COUNT.whole, default=NUM_CLASSES, metavar="C", help="default: %(default)s"
    )
    parser.add_argument("--directory", type=Path, help="folder of all caches; default: $TUNER_CACHE or ~/.cache/tuner")
    parser.add_argument("--on-bad-shard", choices=("fail", "skip"), default="fail", help="default: %(default)s")
    parser.add_argument("--on-bad-record", choices=("error", "skip"), default="error", help="default: %(default)s")
    parser.add_argument(
        "--bad-record-limit",
        type=COUNT.whole,
        default=MAX_BAD_RECORDS,
        metavar="N",
        help="bad records that may be left out; default: %(default)s",
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    parser.add_argument(
        "--workers",
        type=Range(1, 4096).whole,
        metavar="N",
        help="processes that decode; default: $TUNER_DECODE_WORKERS, or by CPUs and memory",
    )
    parser.add_argument("--no-labels", action="store_true", help="accept videos without the key 'labels'")
    options = parser.parse_args(arguments)
    _build_or_check(options)


def _build_or_check(options: argparse.Namespace) -> None:
    from rich.console import Console

    from data.cache.bar import build_bar
    from data.cache.store import default_directory

    check_folder(options.directory or default_directory())

    began = time.perf_counter()
    was_built = False
    with build_bar(Console(stderr=True)) as draw:

        def show(progress: BuildProgress) -> None:
            nonlocal was_built
            was_built = True
            draw(progress)

        cache = _open(options, show)
        if not was_built and cache.damaged():
            cache.remove_manifest()
            cache = _open(options, show)
        cache.statistics(draw)
    seconds = time.perf_counter() - began
    _print_table(cache, f"built in {seconds:.1f} s" if was_built else f"existed; checked in {seconds:.1f} s")


def _open(options: argparse.Namespace, progress: Callable[[BuildProgress], None]) -> Cache:
    from data.cache.recipe import find_shards
    from data.cache.store import default_directory, open_cache

    schema = Schema(
        features=dict(options.features or FEATURES[options.level]),
        num_classes=options.num_classes,
        level=options.level,
        max_frames=options.max_frames,
        keys=dict(options.keys),
    )
    return open_cache(
        find_shards(options.data),
        schema,
        options.directory or default_directory(),
        on_bad_shard=options.on_bad_shard,
        on_bad_record=options.on_bad_record,
        max_bad_records=options.bad_record_limit,
        workers=options.workers,
        progress=progress,
        require_labels=not options.no_labels,
        dtype=options.dtype,
    )


def _print_table(cache: Cache, origin: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    statistics = cache.statistics()
    without = int((statistics.label_counts_C == 0).sum())
    table = Table(box=box.SIMPLE, show_header=False)
    rows = {
        "segments" if cache.schema.level == "segment" else "videos": f"{cache.num_videos:,}",
        "shards": f"{len(cache.shards):,}",
        "features": ", ".join(f"{name} {width}" for name, width in cache.schema.features.items()),
        "stored as": str(cache.features_ND.dtype),
        **({} if cache.frame_offsets is None else {"frames": f"{len(cache.features_ND):,}"}),
        "labels per video": f"{len(cache.label_indices) / max(cache.num_videos, 1):.2f}",
        "classes": f"{cache.schema.num_classes:,}, of which {without:,} without a positive",
        "size on disk": f"{cache.num_bytes / 1e6:,.1f} MB",
        "fingerprint": cache.fingerprint[:16],
        "folder": str(cache.directory),
        "cache": origin,
        "skipped": f"{len(cache.skipped)} shards, {len(cache.bad_records)} records",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)
    for sentence in cache.remarks():
        print(sentence)


if __name__ == "__main__":
    sys.exit(run_command(main))
