"""A file of lines that only grows. A line is stored durably when `append` returns.

    journal.jsonl                      in a folder: one file
    journal.jsonl  journal.0001.jsonl  in an object store, which cannot append: segments, read one after the other.
                                       Every append rewrites the last one; a segment of SEGMENT_BYTES is complete.

An object store writes an object as a whole or not at all. Every writer begins with a new segment, which the store
creates only if nobody else has created it, so a writer cannot undo a line of the writer that has replaced it. Nor can
it add one: the first line of a segment says how many bytes of the segment before count, and what a writer that was
suspended writes behind them is never read.

    {"type": "segment", "after": 4711}
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from upath import UPath

from data.retry import retried
from tuner.errors import SearchError

SEGMENT_BYTES = 64 * 2**10
_HEADER = b'{"type": "segment", "after": '  # how the first line of every segment but the first one begins


class AppendLog(Protocol):
    """A log that is open for appending."""

    def append(self, line: bytes) -> None:
        """Store a line, which ends with a newline.

        Raises:
            SearchError: the line cannot be written, or another process writes this log.
        """

    def close(self) -> None:
        """Release the file."""


def lines(parts: Iterable[tuple[Path | UPath, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Every complete line of a log and its position, `file:number`.

    A last line without a newline, which a crash leaves behind, is ignored, and so are the first lines of segments.

    Args:
        parts: the files of the log, in order, with their content.
    """
    for path, content in parts:
        *complete, _ = content.split(b"\n")
        for number, line in enumerate(complete, start=1):
            if not line.startswith(_HEADER):
                yield f"{path}:{number}", line


class LocalLog:
    """A file on a disk or in a network folder: every line is appended and synced."""

    def __init__(self, path: Path) -> None:
        """Open the file, and cut off an incomplete last line, so that the next line does not join it."""
        self._path = path
        self._file: io.FileIO | None = None
        content = retried(path.read_bytes, path) if path.exists() else b""
        self._end = content.rfind(b"\n") + 1
        retried(self._open, path)

    def append(self, line: bytes) -> None:
        """Write a line to the disk.

        Raises:
            SearchError: the line cannot be written, for example because the disk is full; the file is left without it.
            UnreachableError: the network folder does not answer.
        """
        try:
            retried(partial(self._write, line), self._path)
        except OSError as error:
            with suppress(OSError):
                self._open().truncate(self._end)
            raise SearchError(f"{self._path}: cannot be written ({error.strerror})") from error
        self._end += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, line: bytes) -> None:
        file, rest = self._open(), memoryview(line)
        try:
            file.truncate(self._end)  # an attempt before may have written a part of the line
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            self._file = None  # its handle may be stale
            with suppress(OSError):
                file.close()
            raise

    def _open(self) -> io.FileIO:
        if self._file is None:
            # Without a buffer, which would write a line again later that failed now.
            self._file = self._path.open("ab", buffering=0)
            self._file.truncate(self._end)
        return self._file


class SegmentedLog:
    """Numbered objects in an object store, of which the last one is rewritten with every line."""

    def __init__(self, file: UPath, parts: Sequence[tuple[Path | UPath, bytes]]) -> None:
        """Continue after the existing segments.

        Args:
            file: the name of the log.
            parts: its segments, as `read_segments` gave them to this writer.
        """
        self._file, self._number = file, len(parts)
        self._header = _header(parts[-1][1]) if parts else b""
        self._lines = b""

    def append(self, line: bytes) -> None:
        """Write the current segment with one more line.

        Raises:
            SearchError: another process has created this segment.
        """
        segment, lines = _segment(self._file, self._number), self._lines + line
        content = self._header + lines
        if self._lines:
            segment.write_bytes(content)
        elif not create(segment, content):
            raise SearchError(f"{segment}: another driver wrote it, which has taken over this search")
        self._lines = lines
        if len(lines) >= SEGMENT_BYTES:
            self._number, self._header, self._lines = self._number + 1, _header(content), b""

    def close(self) -> None:
        """Do nothing: every line is in the store already."""


def create(path: UPath, content: bytes) -> bool:
    """Write an object only if it does not exist.

    Returns:
        Whether the object has this content now. That is also true where an object with the same content existed: the
        store's library repeats a request whose answer was lost.
    """
    try:
        path.fs.pipe_file(path.path, content, mode="create")
    except FileExistsError:
        with suppress(FileNotFoundError):  # it was another's, who has removed it since
            return path.read_bytes() == content
        return False
    return True


def read_segments(file: UPath) -> list[tuple[Path | UPath, bytes]]:
    """The segments of a log in order, each with as much of its content as counts.

    Raises:
        SearchError: a segment is missing.
    """
    segments = _segments(file)
    contents = file.fs.cat([segment.path for segment in segments]) if segments else {}  # fetches them concurrently
    read = [contents[segment.path] for segment in segments]
    after = [_after(part) for part in read[1:]] + [None]
    return [(segment, part[:end]) for segment, part, end in zip(segments, read, after, strict=False)]


def _header(before: bytes) -> bytes:
    """The first line of a segment; `before` is the content of the segment before it."""
    return json.dumps({"type": "segment", "after": len(before)}).encode() + b"\n"


def _after(segment: bytes) -> int | None:
    """How many bytes of the segment before this one count; None: all, also before segments of older versions."""
    return int(json.loads(segment.partition(b"\n")[0])["after"]) if segment.startswith(_HEADER) else None


def _segment(file: UPath, number: int) -> UPath:
    return file.with_suffix(f".{number:04d}{file.suffix}") if number else file


def _segments(file: UPath) -> list[UPath]:
    found = {path.name for path in file.parent.glob(f"{file.stem}*{file.suffix}")}
    segments = [_segment(file, number) for number in range(len(found))]
    for segment in segments:
        if segment.name not in found:
            raise SearchError(f"{segment}: this part of the journal is missing")
    return segments
