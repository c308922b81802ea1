"""The classes: a csv with the columns Index and Name, rows in any order, plain or .gz, a path or a URL.

YouTube-8M's own has further columns; TrainVideoCount, the videos of each class, weighs the classes of a loss.
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
    """The name of every class, by its index; other columns are skipped.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not name each of the classes once.
    """
    return _column(path, num_classes, NAME, str)


def video_counts(path: str | Path, num_classes: int) -> list[int]:
    """The number of training videos of every class, by its index and not by its row, for rows have any order.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not count each of the classes once.
    """
    return _column(path, num_classes, COUNT, int)


def _column(path: str | Path, num_classes: int, column: str, convert: Callable[[str], T]) -> list[T]:
    import fsspec  # here, since most experiments name no vocabulary

    values: dict[int, T] = {}
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in (INDEX, column) if name not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}: a vocabulary has the columns {INDEX} and {column}, but {' and '.join(missing)} "
                    f"is not among {', '.join(rows.fieldnames or ['none'])}"
                )
            for row in rows:
                index, value = row[INDEX], row[column]
                if not (index.isdecimal() and int(index) < num_classes):
                    rule = f"{INDEX} must be in [0, {num_classes})"
                    raise ConfigError(f"{path}:{rows.line_num}: {rule}, but got {index!r}")
                if int(index) in values:
                    raise ConfigError(f"{path}:{rows.line_num}: names class {index} a second time")
                if convert is int and not (value or "").isdecimal():
                    raise ConfigError(f"{path}:{rows.line_num}: {column} must be a whole number, but got {value!r}")
                values[int(index)] = convert(value or "")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, ValueError, ImportError) as error:
        raise ConfigError(f"{path}: cannot be read as a vocabulary: {error}") from error
    nameless = [index for index in range(num_classes) if index not in values]
    if nameless:
        raise ConfigError(
            f"{path}: has no name for {len(nameless)} of {num_classes} classes, the first is {nameless[0]}"
        )
    return [values[index] for index in range(num_classes)]


def write(path: Path, names: Sequence[str]) -> None:
    """The same file, sorted by index."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((INDEX, NAME))
        rows.writerows(enumerate(names))
