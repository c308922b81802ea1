"""Prints what a TFRecord file holds, without a schema: keys, types, counts and first values of its first records.

    python -m data.inspect FILE [--num 3]

Example and SequenceExample, plain or gzip, a path or a URL. Only the records that are shown are read and checked.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from data.errors import DataError
from data.ranges import COUNT
from data.tfrecord import read_examples
from data.tfrecord.describe import describe


def _lines(path: str, num: int) -> Iterator[str]:
    examples = read_examples(path)
    shown = 0
    for example in islice(examples, num):
        yield from describe(example)
        shown += 1
    if not shown:
        yield "no records: the file is empty"
    elif next(examples, None) is not None:
        yield f"... and more: --num {2 * num} shows the first {2 * num}"


def main(argv: Sequence[str] | None = None) -> int:
    """Shows what is in a TFRecord file: keys, types and first values of its first records."""
    parser = argparse.ArgumentParser(prog="python -m data.inspect", description=main.__doc__)
    parser.add_argument("file", metavar="FILE", help="a path or a URL; plain or gzip")
    parser.add_argument(
        "--num", type=COUNT.whole, default=3, metavar="N", help="records to show (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if arguments.num < 1:
        parser.error(f"--num must be at least 1, but got {arguments.num}")
    try:
        for line in _lines(arguments.file, arguments.num):
            print(line)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
