"""A file of lines that only grows, each line stored for good when `append` returns; in a folder or an object store.

    journal.jsonl                      in a folder: the file
    journal.jsonl  journal.0001.jsonl  in a store, which appends nothing: segments, read one after the other. The last
                                       one is written anew with every line, and left as it is once it is large enough.

A store writes an object whole or not at all. Every writer begins a segment of its own, and creates it only where there
is none: whoever writes on after another has taken over cannot undo a line of the other's.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from upath import UPath

from tuner.errors import SearchError
from tuner.storage.place import Place

SEGMENT_BYTES = 64 * 2**10


class AppendOnly(Protocol):
    """An open file."""

    def append(self, line: bytes) -> None:
        """Add a line, which ends with a newline; it is stored when this returns."""

    def close(self) -> None:
        """Nothing more is written."""


def open_for_append(file: Place) -> AppendOnly:
    """Open the file, which is made where there is none; one writer at a time."""
    return LocalFile(file) if isinstance(file, Path) else Segments(file)


def lines(file: Place) -> Iterator[tuple[str, bytes]]:
    """Every whole line, and where it stands (`file:number`); a last line cut short by a crash is not one.

    Raises:
        SearchError: a segment is missing.
    """
    parts: list[tuple[Place, bytes]]
    parts = [(file, file.read_bytes())] if isinstance(file, Path) else _read_segments(file)
    for path, content in parts:
        *whole, _ = content.split(b"\n")
        for number, line in enumerate(whole, start=1):
            yield f"{path}:{number}", line


class LocalFile:
    """A file that is appended to and synced."""

    def __init__(self, path: Path) -> None:
        """Drop what a crash left of a last line, so that the next one starts on its own."""
        if path.exists():
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)
        self._file = path.open("ab", buffering=0)  # what could not be written is not kept, to be written later

    def append(self, line: bytes) -> None:
        """On the disk when this returns.

        Raises:
            SearchError: it cannot be written, as on a full disk. Nothing of it is left in the file.
        """
        end, rest = self._file.seek(0, os.SEEK_END), memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise SearchError(f"{self._file.name}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Close it."""
        self._file.close()


class Segments:
    """Numbered objects, the last of which grows."""

    def __init__(self, file: UPath) -> None:
        """Go on after the segments that are there."""
        self._file = file
        self._number = len(_segments(file))
        self._content = b""

    def append(self, line: bytes) -> None:
        """In the store when this returns.

        Raises:
            SearchError: somebody else writes as well.
        """
        segment, content = _segment(self._file, self._number), self._content + line
        if self._content:
            segment.write_bytes(content)
        elif not create(segment, content):
            raise SearchError(f"{segment}: written by another driver, which has taken over this search")
        self._content = content
        if len(content) >= SEGMENT_BYTES:
            self._number, self._content = self._number + 1, b""

    def close(self) -> None:
        """Everything is stored already."""


def create(path: UPath, content: bytes) -> bool:
    """Write an object where there is none; whether it is there with this content, no matter whose."""
    try:
        path.fs.pipe_file(path.path, content, mode="create")
    except FileExistsError:  # also after an answer that was lost: the library asks again by itself
        return path.read_bytes() == content
    return True


def _segment(file: UPath, number: int) -> UPath:
    return file.with_suffix(f".{number:04d}{file.suffix}") if number else file


def _segments(file: UPath) -> list[UPath]:
    """The segments in order.

    Raises:
        SearchError: one is missing.
    """
    found = {path.name for path in file.parent.glob(f"{file.stem}*{file.suffix}")}
    segments = [_segment(file, number) for number in range(len(found))]
    for segment in segments:
        if segment.name not in found:
            raise SearchError(f"{segment}: this part of the journal is missing")
    return segments


def _read_segments(file: UPath) -> list[tuple[Place, bytes]]:
    segments = _segments(file)
    contents = file.fs.cat([segment.path for segment in segments]) if segments else {}  # many at a time
    return [(segment, contents[segment.path]) for segment in segments]
