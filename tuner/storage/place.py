"""A place: a folder or file of this machine, or its URL in an object store; and what the two do in different ways.

A place is a `Path` or a `UPath`, which share the methods of pathlib (`/`, `exists`, `read_text`, `glob`, ...). What is
different for an object store, which has no folders, renames nothing, appends nothing and knows no locks, is a method of
`Location`. `tuner.storage.stores.at(place)` gives the implementation for a place: `LocalLocation` (local.py) or
`ObjectLocation` (objects.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from data.errors import UnreachableError
from data.retry import text_of
from tuner.errors import ConfigError, SearchError, TunerError
from tuner.redact import redacted
from tuner.storage.append_log import AppendLog

Place = Path | UPath


class Location(Protocol):
    """A place, with the operations that folders and object stores implement differently."""

    def __init__(self, place: Any) -> None:
        """Refer to `place`, which need not exist."""

    def make(self) -> None:
        """Create the folder where the store needs that before a file is written into it."""

    def remove(self) -> None:
        """Remove the folder and everything in it; do nothing where it does not exist."""

    def download(self, names: Sequence[str]) -> AbstractContextManager[Path]:
        """A folder of this machine with the files of this folder, for the time of the block.

        Args:
            names: the files to copy, if they have to be copied; a file that does not exist is left out.

        Raises:
            ConfigError: the store cannot be read.
            TunerError: as raised in the block, with this place in its message instead of the copy's path.
        """

    def publish(self, *, last: str, first: str = "") -> AbstractContextManager[Path]:
        """An empty folder of this machine that becomes this folder when the block ends, unless the block raises.

        Readers see the old content, the new content or, in an object store, a folder without the file `last`.

        Args:
            last: the file that is written after all others; readers ignore a folder without it.
            first: the file that is written before all others.

        Raises:
            ConfigError: the store cannot be written.
            WrittenTwice: another process has written this folder in an object store since the block ended.
        """

    def buffered(self) -> AbstractContextManager[Path]:
        """A file of this machine whose content is appended to this file when the block ends, even by an exception."""

    def open_log(self, parts: Sequence[tuple["Place", bytes]]) -> AppendLog:
        """Open this file for appending, and create it where it does not exist. Only one process may do so at a time.

        Args:
            parts: what `log_parts` has given. In an object store, a line that another process writes later does not
                count.
        """

    def log_parts(self) -> list[tuple[Place, bytes]]:
        """The files that `open_log` has written for this file, in order, each with as much of its content as counts.

        Raises:
            SearchError: one of them is missing.
        """

    def lock(
        self, owner: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str]
    ) -> AbstractContextManager[Callable[[], None]]:
        """Hold the lock of this folder during the block; the folder is created where it does not exist.

        Args:
            owner: facts about this process, stored for a process that does not get the lock.
            describe: makes a sentence of such facts.

        Yields:
            A function to call before every write; it raises SearchError once another process has taken the lock.

        Raises:
            SearchError: another process holds the lock; the message describes it. Or the folder cannot be written.
            ConfigError: the object store cannot be written.
        """


def taken(by: str, folder: Place) -> SearchError:
    """The error for a driver that does not get the lock of `folder`; `by` is a sentence about the one that holds it."""
    return SearchError(f"{by} in {folder}; wait until it ends or stop it, or choose another --storage")


def is_url(place: Place) -> bool:
    """Whether the place is in an object store, which every machine sees; a folder may exist on one machine only."""
    return not isinstance(place, Path)


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn every error of a store's library in the block into a ConfigError: `what`, then the library's first line."""
    try:
        yield
    except (TunerError, UnreachableError):
        raise
    except Exception as error:  # each library has its own classes; those of S3 are no OSErrors
        raise ConfigError(f"{what}: {redacted(text_of(error))}") from error
