"""The lock of one cache: one process builds it, or sums it up, while the others wait and say what they wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

from filelock import FileLock, Timeout

from data.cache.build import working_directory
from data.cache.journal import JournalReader
from data.cache.progress import BuildProgress

_POLL_SECONDS = 0.1  # between the first two looks at another process's build; the pauses grow
_LONGEST_POLL_SECONDS = 1.0


@contextmanager
def locked(folder: Path, num_shards: int, report: Callable[[BuildProgress], None]) -> Iterator[None]:
    """Holds the lock of one cache; reports the other process's progress while it waits for the lock."""
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    journal = JournalReader(working_directory(folder))
    begun = so_far = BuildProgress.of((), num_shards, waiting_for_lock=True)
    pause = _POLL_SECONDS
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            written = journal.read()
            so_far = reduce(BuildProgress.after, written, begun if journal.restarted else so_far)
            report(so_far)
            time.sleep(pause)
            pause = min(1.1 * pause, _LONGEST_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
