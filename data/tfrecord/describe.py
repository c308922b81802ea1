"""Describes a record without a schema: keys, types, numbers of values and the first values."""

from data.tfrecord.examples import Example, Values, type_of

_SHOWN_BYTES = 24  # of one value
_SHOWN_VALUES = {"bytes": 2, "float32": 6, "int64": 6}  # of one feature


def describe(example: Example) -> list[str]:
    """Returns a heading and one line for every feature and feature list, sorted by name, in aligned columns."""
    lists = example.feature_lists
    rows = [(key, *_cells(values)) for key, values in sorted(example.features.items())]
    for key, steps in sorted(lists.items()):
        kind, count, first = _cells(steps[0] if steps else [])
        rows.append((f"{key}[]", kind, f"{len(steps)} x {count}", first))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    heading = f"record at byte {example.offset}: {'SequenceExample' if lists else 'Example'}, {len(rows)} keys"
    return [heading, *(_line(row, widths) for row in rows)]


def _line(row: tuple[str, str, str, str], widths: list[int]) -> str:
    key, kind, count, first = row
    return f"  {key:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}  {first}".rstrip()


def _cells(values: Values) -> tuple[str, str, str]:
    """Returns the type, the number of values and the first values of a feature."""
    kind = type_of(values)
    first = values[: _SHOWN_VALUES[kind]]
    shown = [_text(value) for value in (first if isinstance(first, list) else first.tolist())]
    return kind, str(len(values)), " ".join(shown) + (" ..." if len(values) > len(shown) else "")


def _text(value: bytes | float) -> str:
    """Returns bytes as text where they are text, else in hexadecimal; a long value is cut and its length given."""
    if not isinstance(value, bytes):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    cut = value[:_SHOWN_BYTES]
    text = repr(cut)[1:] if cut.isascii() and cut.decode().isprintable() else f"<{cut[:12].hex(' ')}>"
    return text if len(value) <= _SHOWN_BYTES else f"{text}... ({len(value)} bytes)"
