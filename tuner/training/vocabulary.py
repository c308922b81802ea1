"""The vocabulary names the classes: a csv with the columns Index and Name, rows in any order, plain or .gz.

YouTube-8M's own file has further columns. One of them, TrainVideoCount, the number of training videos of a class, is
used by the loss weighted_hamming.
"""

import csv
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tuner.errors import ConfigError

INDEX, NAME, COUNT = "Index", "Name", "TrainVideoCount"

T = TypeVar("T")


def read(path: str | Path, num_classes: int) -> list[str]:
    """Read the name of every class, in the order of the indices; other columns are ignored.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not name every class exactly once.
    """
    return _column(path, num_classes, NAME, str)


def video_counts(path: str | Path, num_classes: int) -> list[int]:
    """Read the number of training videos of every class, in the order of the indices, not of the rows.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not count every class exactly once.
    """
    return _column(path, num_classes, COUNT, int)


def _column(path: str | Path, num_classes: int, column: str, convert: Callable[[str], T]) -> list[T]:
    import fsspec  # imported here because most experiments name no vocabulary

    values: dict[int, T] = {}
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in (INDEX, column) if name not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}: a vocabulary needs the columns {INDEX} and {column}, but {' and '.join(missing)} "
                    f"is not among {', '.join(rows.fieldnames or ['none'])}"
                )
            for row in rows:
                index, value = row[INDEX], row[column]
                if not (index.isdecimal() and int(index) < num_classes):
                    rule = f"{INDEX} must be in [0, {num_classes})"
                    raise ConfigError(f"{path}:{rows.line_num}: {rule}, but got {index!r}")
                if int(index) in values:
                    raise ConfigError(f"{path}:{rows.line_num}: names class {index} twice")
                if convert is int and not (value or "").isdecimal():
                    raise ConfigError(f"{path}:{rows.line_num}: {column} must be a whole number, but got {value!r}")
                values[int(index)] = convert(value or "")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, ValueError, ImportError) as error:
        raise ConfigError(f"{path}: cannot be read as a vocabulary: {error}") from error
    missing_classes = [index for index in range(num_classes) if index not in values]
    if missing_classes:
        raise ConfigError(
            f"{path}: {len(missing_classes)} of {num_classes} classes are missing; the first is {missing_classes[0]}"
        )
    return [values[index] for index in range(num_classes)]


def write(path: Path, names: Sequence[str]) -> None:
    """Write the names as a vocabulary, sorted by index."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((INDEX, NAME))
        rows.writerows(enumerate(names))
