"""Writes learnable sample shards in the real format.

python -m data.sample DIR [--level video|frame|segment] [--train 4000] [--validate 1000] [--test 1000] [--shards 4]
                          [--classes 64] [--seed 1] [--frames 30]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.places import check_folder, run_command
from data.ranges import COUNT, SEED, Range
from data.sample.writer import NUM_FRAMES, NUM_VIDEOS, SHARDS, VIDEOS, write_splits
from data.schema import FEATURES


def main(argv: Sequence[str] | None = None) -> None:
    """Writes learnable sample shards."""
    parser = argparse.ArgumentParser(prog="python -m data.sample", description=main.__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--level", choices=tuple(FEATURES), default="video", help="of the records (default: video)")
    for split, count in NUM_VIDEOS.items():
        parser.add_argument(
            f"--{split}",
            type=VIDEOS.whole,
            default=count,
            metavar="N",
            help="videos (default: %(default)s)",
        )
    parser.add_argument("--shards", type=SHARDS.whole, default=4, metavar="N", help="of train (default: %(default)s)")
    parser.add_argument("--classes", type=COUNT.whole, default=64, metavar="C", help="(default: %(default)s)")
    parser.add_argument("--seed", type=SEED.whole, default=1, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument(
        "--frames",
        type=Range(1, 10_000).whole,
        default=NUM_FRAMES,
        metavar="T",
        help="of the longest video (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    check_folder(arguments.directory)
    splits = write_splits(
        arguments.directory,
        num_videos={split: getattr(arguments, split) for split in NUM_VIDEOS},
        num_shards=arguments.shards,
        num_classes=arguments.classes,
        seed=arguments.seed,
        level=arguments.level,
        num_frames=arguments.frames,
    )
    size = sum(path.stat().st_size for paths in splits.values() for path in paths)
    shards = {split: f"{len(paths)} shard{'s' * (len(paths) != 1)}" for split, paths in splits.items()}
    counts = ", ".join(f"{getattr(arguments, split)} {split} in {shards[split]}" for split in splits)
    print(f"{counts}: {size / 1e6:.1f} MB in {arguments.directory}, {arguments.classes} classes, seed {arguments.seed}")


if __name__ == "__main__":
    sys.exit(run_command(main))
