"""The classes' names: a csv with the columns Index and Name, rows in any order, plain or .gz, a path or a URL."""

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path

from tuner.errors import ConfigError

INDEX, NAME = "Index", "Name"


def read(path: str | Path, num_classes: int) -> list[str]:
    """The name of every class, by its index; other columns are skipped.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or does not name each of the classes once.
    """
    import fsspec  # here, since most experiments name no vocabulary

    names: dict[int, str] = {}
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in (INDEX, NAME) if column not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}: a vocabulary has the columns {INDEX} and {NAME}, but {' and '.join(missing)} "
                    f"is not among {', '.join(rows.fieldnames or ['none'])}"
                )
            for row in rows:
                index, name = row[INDEX], row[NAME]
                if not (index.isdecimal() and int(index) < num_classes):
                    rule = f"{INDEX} must be in [0, {num_classes})"
                    raise ConfigError(f"{path}:{rows.line_num}: {rule}, but got {index!r}")
                if int(index) in names:
                    raise ConfigError(f"{path}:{rows.line_num}: names class {index} a second time")
                names[int(index)] = name or ""
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, ValueError, ImportError) as error:
        raise ConfigError(f"{path}: cannot be read as a vocabulary: {error}") from error
    nameless = [index for index in range(num_classes) if index not in names]
    if nameless:
        raise ConfigError(
            f"{path}: has no name for {len(nameless)} of {num_classes} classes, the first is {nameless[0]}"
        )
    return [names[index] for index in range(num_classes)]


def write(path: Path, names: Sequence[str]) -> None:
    """The same file, sorted by index."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((INDEX, NAME))
        rows.writerows(enumerate(names))
