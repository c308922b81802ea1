"""Sends what libraries print, such as Ray, to a log file."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tuner.errors import disk_full_message


class _Forgiving(io.FileIO):
    """A file that drops what cannot be written because the disk is full."""

    @classmethod
    def text(cls, descriptor: int) -> io.TextIOWrapper:
        """A text file on an open descriptor, which closing the file leaves open."""
        file = cls(descriptor, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8", errors="replace", line_buffering=True)

    def write(self, content: Any) -> int:
        """Write the bytes, or drop all of them where the disk is full."""
        try:
            return super().write(content)
        except OSError as error:
            if disk_full_message(error) is None:
                raise
            return memoryview(content).nbytes


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Redirect stdout and stderr of this process and its children to the end of `log`, by their file descriptors.

    What this process prints is dropped where the disk of the log is full; printing does not fail.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    out, error = _Forgiving.text(1), _Forgiving.text(2)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            yield
    finally:
        out.flush()
        error.flush()
        for descriptor, target in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
