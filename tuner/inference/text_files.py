"""Text files that predictions are written to and read from: plain or .gz, with video ids of any bytes."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError


def open_text(path: Path, mode: str, newline: str = "") -> Any:
    """Open a text file, plain or .gz. Bytes that are not UTF-8 are read as surrogates and written back unchanged."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, mode, encoding="utf-8", errors="surrogateescape", newline=newline)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the errors of a block that reads a file into one sentence.

    Args:
        what: the beginning of the sentence, which names the file.

    Raises:
        ConfigError: the file is missing, cut short or of another kind.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{what}: {getattr(error, 'strerror', None) or error}") from error
