"""Prints what TFRecord files hold, without a schema: the first records of a file, or a summary of many files.

    python -m data.inspect FILE [--num 3]
    python -m data.inspect FOLDER|GLOB|FILE ...

Example and SequenceExample, plain, gzip or zlib, paths or URLs. Of one file only the records that are shown are read
and checked. Several files are read as a whole and summed up, with a `data:` block for experiments.yaml.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from data.cache.recipe import about_empty, find_each, find_shards, is_folder
from data.errors import NoShardsError, ShardError
from data.inspect.overview import block, groups_of, overview
from data.inspect.summary import Summary
from data.places import run_command
from data.ranges import COUNT
from data.tfrecord import read_examples
from data.tfrecord.describe import describe
from data.tfrecord.framing import looks_like_shard


def _records(path: str, num: int) -> Iterator[str]:
    examples = read_examples(path)
    shown = 0
    for example in islice(examples, num):
        yield from describe(example)
        shown += 1
    if not shown:
        yield "no records: the file is empty"
    elif next(examples, None) is not None:
        yield f"... and more: --num {2 * num} shows the first {2 * num}"


def _found(places: Sequence[str]) -> list[str]:
    """Returns the shards of files, globs and folders; of a folder all files in it and below that look like shards.

    Hidden files are none.

    Raises:
        NoShardsError: a place has none.
    """
    shards: set[str] = set()
    for place in places:
        if is_folder(place):
            below = {path for path in find_shards(f"{place.rstrip('/')}/**") if looks_like_shard(path)}
            if not below:
                raise NoShardsError(f"{place}: no file in this folder is a TFRecord file")
            shards |= below
        else:
            shards.update(find_shards(place))
    return sorted(shards)


def _sum_up(shards: Sequence[str]) -> int:
    """Prints the summary of shards; returns the exit code."""
    from rich.console import Console

    from data.cache.bar import shard_bar

    summary, damaged = Summary(), 0
    numbers: dict[str, int] = {}
    with shard_bar(Console(stderr=True)) as bar:
        for path in bar.track(shards, description="reading shards"):
            before = summary.num_records
            try:
                for example in read_examples(path):
                    summary.add(example)
            except ShardError as error:
                damaged += 1
                print(f"error: {error}", file=sys.stderr)
            numbers[path] = summary.num_records - before
    found = find_each(shards)
    groups = groups_of({shard.path: (numbers[shard.path], shard.size) for shard in found})
    for line in overview(groups, summary):
        print(line)
    for sentence in about_empty([path for path in shards if not numbers[path]], len(shards)):
        print(sentence)
    if damaged:
        print(f"{damaged} of {len(shards)} shards are damaged; only what comes before the damage is counted")
    print()
    for line in block(groups, summary):
        print(line)
    return 2 if damaged else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Shows what is in TFRecord files: keys, types and values of the first records, or a summary of many files."""
    parser = argparse.ArgumentParser(prog="python -m data.inspect", description=main.__doc__)
    parser.add_argument(
        "places", metavar="FILE|FOLDER|GLOB", nargs="+", help="paths or URLs; several files are summed up"
    )
    parser.add_argument(
        "--num", type=COUNT.whole, default=3, metavar="N", help="records of one file to show (default: %(default)s)"
    )
    parser.add_argument("--summary", action="store_true", help="sum up one file, too")
    arguments = parser.parse_args(argv)
    shards = _found(arguments.places)
    if len(shards) > 1 or arguments.summary or is_folder(arguments.places[0]):
        return _sum_up(shards)
    for line in _records(shards[0], arguments.num):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
