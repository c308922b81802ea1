"""Folders and files of this machine: renamed into place, appended to, locked by the operating system."""

import errno
import json
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data import atomic
from data.places import check_output
from data.retry import retried
from tuner.errors import SearchError, TunerError
from tuner.storage.append_log import LocalLog
from tuner.storage.place import Place, taken
from tuner.storage.scratch import OLD, scratch_folder


class LocalLocation:
    """A folder or a file of this machine (`tuner.storage.place.Location`)."""

    def __init__(self, place: Path) -> None:
        """Refer to `place`, which need not exist."""
        self._path = place

    def make(self) -> None:
        """Create the folder and its parents."""
        self._path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self._path, ignore_errors=True)

    @contextmanager
    def download(self, names: Sequence[str]) -> Iterator[Path]:
        """Give the folder itself; nothing is copied."""
        yield self._path

    @contextmanager
    def publish(self, *, last: str, first: str = "") -> Iterator[Path]:
        """Give a new folder beside this one, which a rename puts in its place after the block."""
        folder = self._path.absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        # With the name of this machine: not every shared file system passes locks on to others.
        prefix = f".{folder.name}-{socket.gethostname()}-"
        with scratch_folder(folder.parent, prefix, mode=0o777) as staging:
            yield staging
            old = staging.with_name(staging.name + OLD)
            while not _renamed(staging, folder):
                shutil.rmtree(old, ignore_errors=True)
                with suppress(FileNotFoundError):  # another process has just replaced the folder, too
                    folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def buffered(self) -> Iterator[Path]:
        """Give the file itself: the block appends to it."""
        yield self._path

    def open_log(self, parts: Sequence[tuple[Place, bytes]]) -> LocalLog:
        """Open the file for appending."""
        return LocalLog(self._path)

    def log_parts(self) -> list[tuple[Place, bytes]]:
        """The file and its content; an empty list where it does not exist."""
        return [(self._path, retried(self._path.read_bytes, self._path))] if self._path.exists() else []

    @contextmanager
    def lock(
        self, owner: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str]
    ) -> Iterator[Callable[[], None]]:
        """Hold `driver.lock` in the folder, which the operating system frees when the process ends.

        `driver.json` beside it says who holds the lock.
        """
        folder = self._path
        lock, facts = FileLock(folder / "driver.lock"), folder / "driver.json"
        try:
            self.make()
            lock.acquire(timeout=0)
        except Timeout as error:
            known: dict[str, Any] = {}
            with suppress(OSError, ValueError):  # the owner is just writing or removing the file
                known = json.loads(facts.read_text(encoding="utf-8"))
            raise taken(describe(known), folder) from error
        except OSError as error:
            raise SearchError(f"{folder}: cannot be written ({error.strerror}); choose another --storage") from error
        locked = _identity(folder / "driver.lock")

        def still_ours() -> None:
            if _identity(folder / "driver.lock") != locked:
                raise SearchError(
                    f"{folder / 'driver.lock'}: the lock of this driver is gone, somebody has removed it, so another "
                    "driver may begin; this driver stops"
                )

        try:
            facts.write_text(json.dumps(owner), encoding="utf-8")
            yield still_ours
        finally:
            facts.unlink(missing_ok=True)
            lock.release()


def _renamed(source: Path, target: Path) -> bool:
    """Rename a folder; returns False where `target` is a folder with files, which a rename does not replace."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A temporary file that becomes `output` when the block ends, and is removed when the block raises.

    Its name ends like that of `output`, because the suffix may select the format.

    Raises:
        TunerError: the file cannot be written.
        DataError: nothing can be written there.
    """
    check_output(output)
    try:
        with atomic.replacing(output) as unfinished:
            yield unfinished
    except OSError as error:
        raise TunerError(f"{output}: cannot be written: {error.strerror or error}") from error
