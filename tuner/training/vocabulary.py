"""Lists of classes: csv files with the column Index, plain or .gz. Rows may have any order; other columns are ignored.

A vocabulary also has the column Name. That of YouTube-8M has further columns: TrainVideoCount, the number of training
videos of each class, can weight the classes of a loss.
"""

import csv
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from data.ranges import is_whole
from tuner.errors import ConfigError

INDEX, NAME, COUNT = "Index", "Name", "TrainVideoCount"

T = TypeVar("T")


def read(path: str | Path, num_classes: int) -> list[str]:
    """Read the name of every class.

    Args:
        path: a path or URL.
        num_classes: number of classes.

    Returns:
        The names, by class index.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not name each class exactly once.
    """
    return _column(path, num_classes, NAME, str)


def video_counts(path: str | Path, num_classes: int) -> list[int]:
    """Read the number of training videos of every class.

    Args:
        path: a path or URL.
        num_classes: number of classes.

    Returns:
        The numbers, by class index.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not count each class exactly once.
    """
    return _column(path, num_classes, COUNT, int)


def read_indices(path: str, num_classes: int) -> list[int]:
    """Read a list of some of the classes, such as segment_label_ids.csv, in the order of its rows.

    Raises:
        ConfigError: `path` is a URL, or the file cannot be read, names no class, or one twice or outside the range.
    """
    if "://" in path:
        raise ConfigError(f"{path}: must be a file of this machine, not a URL: download it first")
    classes = [index for _, index, _ in _rows(path, num_classes, [])]
    if not classes:
        raise ConfigError(f"{path}: names no class")
    return classes


def write(path: Path, names: Sequence[str]) -> None:
    """Write a vocabulary that `read` reads, sorted by class index."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((INDEX, NAME))
        rows.writerows(enumerate(names))


def _column(path: str | Path, num_classes: int, column: str, convert: Callable[[str], T]) -> list[T]:
    values: dict[int, T] = {}
    for line, index, (value,) in _rows(path, num_classes, [column]):
        if convert is int and not is_whole(value):
            raise ConfigError(f"{path}:{line}: {column} must be a whole number, but got {value!r}")
        values[index] = convert(value)
    missing = [index for index in range(num_classes) if index not in values]
    if missing:
        raise ConfigError(f"{path}: {len(missing)} of {num_classes} classes are missing; the first is {missing[0]}")
    return [values[index] for index in range(num_classes)]


def _rows(path: str | Path, num_classes: int, columns: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Yield for each row: its line, its class index and its values in `columns`."""
    import fsspec  # here, because most experiments name no vocabulary

    seen: set[int] = set()
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in (INDEX, *columns) if name not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}: lacks the column {' and '.join(missing)}; its columns are: "
                    f"{', '.join(rows.fieldnames or ['none'])}"
                )
            for row in rows:
                index = row[INDEX] or ""
                if not (is_whole(index) and int(index) < num_classes):
                    rule = f"{INDEX} must be in [0, {num_classes})"
                    raise ConfigError(f"{path}:{rows.line_num}: {rule}, but got {index!r}")
                if int(index) in seen:
                    raise ConfigError(f"{path}:{rows.line_num}: names class {index} twice")
                seen.add(int(index))
                yield rows.line_num, int(index), [row[name] or "" for name in columns]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, ValueError, ImportError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of classes: {error}") from error
