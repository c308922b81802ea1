"""What a TFRecord file holds, with no schema: keys, types, counts and first values of its first records.

    python -m data.inspect FILE [--num 3]

Example and SequenceExample, plain or gzip, a path or a URL. Only the records that are shown are read and checked.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from data.errors import ShardError
from data.tfrecord.examples import Example, Values, read_examples

_SHOWN_BYTES = 24  # of one value


def describe(example: Example) -> list[str]:
    """One record as aligned lines: a heading, then a line for every key, by name."""
    sequence = bool(example.feature_lists)
    rows = [(key, *_row(values)) for key, values in sorted(example.features.items())]
    for key, steps in sorted(example.feature_lists.items()):
        kind, count, first = _row(steps[0] if steps else [])
        rows.append((f"{key}[]", kind, f"{len(steps)} x {count}", first))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    heading = f"record at byte {example.offset}: {'SequenceExample' if sequence else 'Example'}, {len(rows)} keys"
    return [heading, *(_line(row, widths) for row in rows)]


def _line(row: tuple[str, str, str, str], widths: list[int]) -> str:
    key, kind, count, first = row
    return f"  {key:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}  {first}".rstrip()


def _row(values: Values) -> tuple[str, str, str]:
    """Type, number of values, the first of them."""
    if isinstance(values, list):
        shown = [_bytes(value) for value in values[:2]]
        return "bytes", str(len(values)), _join(shown, len(values))
    shown = [f"{value:.4g}" if values.dtype.kind == "f" else str(value) for value in values[:6].tolist()]
    return str(values.dtype), str(len(values)), _join(shown, len(values))


def _bytes(value: bytes) -> str:
    """As text where it is text, else in hexadecimal; long values say how long."""
    cut = value[:_SHOWN_BYTES]
    text = repr(cut)[1:] if cut.isascii() and cut.decode().isprintable() else f"<{cut[:12].hex(' ')}>"
    return text if len(value) <= _SHOWN_BYTES else f"{text}... ({len(value)} bytes)"


def _join(shown: list[str], count: int) -> str:
    return " ".join(shown) + (" ..." if count > len(shown) else "")


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
    """`python -m data.inspect`."""
    parser = argparse.ArgumentParser(
        prog="python -m data.inspect", description="Shows what is in a TFRecord file: keys, types, first values."
    )
    parser.add_argument("file", metavar="FILE", help="a path or a URL; plain or gzip")
    parser.add_argument("--num", type=int, default=3, metavar="N", help="records to show (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.num < 1:
        parser.error(f"--num must be at least 1, but got {arguments.num}")
    try:
        for line in _lines(arguments.file, arguments.num):
            print(line)
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
