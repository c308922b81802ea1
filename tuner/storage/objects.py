"""Folders and files in an object store: uploaded as a whole, logged in segments, locked by a lease."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from upath import UPath

from tuner.errors import TunerError, WrittenTwice
from tuner.storage.append_log import SegmentedLog, create, read_segments
from tuner.storage.lease import Lease
from tuner.storage.place import Place, store_errors
from tuner.storage.scratch import scratch_folder


class ObjectLocation:
    """A folder or a file in an object store (`tuner.storage.place.Location`).

    The store must be consistent (a read or a listing shows every earlier write) and able to create an object only if it
    does not exist. Log and lock depend on both.
    """

    def __init__(self, place: UPath) -> None:
        """Refer to `place`, which need not exist."""
        self._url = place

    def make(self) -> None:
        """Do nothing: an object store has no folders."""

    def remove(self) -> None:
        """Remove all objects below this URL."""
        with suppress(FileNotFoundError):  # there is none, or it was removed and the answer was lost
            self._url.fs.rm(self._url.path, recursive=True)

    @contextmanager
    def download(self, names: Sequence[str]) -> Iterator[Path]:
        """Copy the files into a temporary folder."""
        with scratch_folder() as copy:
            for name in names:
                with store_errors(str(self._url)):
                    self._download_file(name, copy)
            try:
                yield copy
            except TunerError as error:
                raise type(error)(str(error).replace(str(copy), str(self._url))) from error

    def _download_file(self, name: str, folder: Path) -> None:
        source, target = self._url / name, folder / name
        try:
            source.fs.get_file(source.path, str(target))
        except FileNotFoundError:
            target.unlink(missing_ok=True)  # an empty file may be there; the reader says what it misses

    @contextmanager
    def publish(self, *, last: str, first: str = "") -> Iterator[Path]:
        """Give a temporary folder and upload its files after the block: `first`, the others, `last`."""
        with scratch_folder() as staging:
            yield staging
            files = sorted(staging.iterdir(), key=lambda path: (path.name == last, path.name != first))
            with store_errors(str(self._url)):
                (self._url / last).unlink(missing_ok=True)
                for path in files:
                    if path.name != last:
                        self._url.fs.put_file(str(path), (self._url / path.name).path)
                    elif not create(self._url / last, path.read_bytes()):
                        raise WrittenTwice(
                            f"{self._url}: another process has written it at the same time, and its files may be mixed "
                            "with this one's; write it again"
                        )

    @contextmanager
    def buffered(self) -> Iterator[Path]:
        """Give a temporary file; after the block the object is rewritten with the file's content at its end."""
        with scratch_folder() as folder:
            local = folder / self._url.name
            local.touch()
            try:
                yield local
            finally:
                with store_errors(str(self._url)):
                    before = self._url.read_bytes() if self._url.exists() else b""
                    self._url.write_bytes(before + local.read_bytes())

    def open_log(self, parts: Sequence[tuple[Place, bytes]]) -> SegmentedLog:
        """Begin a new segment."""
        return SegmentedLog(self._url, parts)

    def log_parts(self) -> list[tuple[Place, bytes]]:
        """The segments, each with its content."""
        return read_segments(self._url)

    @contextmanager
    def lock(
        self, owner: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str]
    ) -> Iterator[Callable[[], None]]:
        """Hold a lease (tuner/storage/lease.py)."""
        with store_errors(str(self._url)):
            lease = Lease(self._url, owner, describe)
        try:
            yield lease.check
        finally:
            lease.release()
