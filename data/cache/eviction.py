"""Which caches make room for a new one: the least recently used, never one that a process has open.

Who opens a cache holds a shared lock on its manifest as long as it has the columns, however it ends, and notes the time
of use there. Between two trials of a search a node may have no process at all, so a cache that was used within the last
hour is kept as well. The same goes for builds that were killed and that nobody has gone on with.

Without $TUNER_CACHE_LIMIT (in GB, for all caches of the folder together) caches are removed only where the disk has no
room for the new one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from data.errors import CacheError

MANIFEST, BUILDING = "manifest.json", ".building"
IDLE_SECONDS = 3600.0
GIGABYTE = 1e9


def hold(folder: Path) -> IO[bytes]:
    """Keep a cache from being removed until the file that this returns, its manifest, is closed.

    Raises:
        FileNotFoundError: there is no cache in the folder.
    """
    while True:
        manifest = (folder / MANIFEST).open("rb")
        try:
            fcntl.flock(manifest, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(manifest.fileno()), (folder / MANIFEST).stat()):
                with suppress(OSError):  # a folder that others may only read
                    os.utime(manifest.fileno())
                return manifest
        except BaseException:
            manifest.close()
            raise
        manifest.close()  # another one was built in its place meanwhile


def make_room(directory: Path, need: int, keep: Path) -> list[str]:
    """Remove caches until there is room for `need` bytes more in `directory`, or nothing is left to remove.

    Args:
        directory: the folder of all caches.
        need: bytes.
        keep: the cache that the room is for.

    Returns:
        What was removed, a sentence each.
    """
    limit = _limit()
    folders = [path for path in directory.iterdir() if path.name.removesuffix(BUILDING) != keep.name and path.is_dir()]
    used = {folder: last_used for folder in folders if (last_used := _last_used(folder)) is not None}
    removed: list[str] = []
    for folder in sorted(used, key=lambda folder: used[folder]):
        idle = time.time() - used[folder]  # the file system's clock is that of the wall
        if idle < IDLE_SECONDS or _room(directory, limit) >= need:
            break
        size = size_of(folder)
        if _remove(folder):
            removed.append(
                f"removed {folder} ({size / GIGABYTE:.2f} GB, last used {idle / 3600:,.0f} h ago) to make room"
            )
    return removed


def room(directory: Path) -> int:
    """Bytes that a further cache may take: what is free, and within the limit."""
    return _room(directory, _limit())


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    total = 0
    with suppress(FileNotFoundError):  # one that is just being removed
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return total


def _room(directory: Path, limit: float) -> int:
    free = shutil.disk_usage(directory).free
    return free if limit == float("inf") else min(free, int(limit) - size_of(directory))


def _limit() -> float:
    """Bytes that all caches may take together.

    Raises:
        CacheError: the variable is no number above 0.
    """
    text = os.environ.get("TUNER_CACHE_LIMIT")
    if not text:
        return float("inf")
    with suppress(ValueError):
        if float(text) > 0:
            return float(text) * GIGABYTE
    raise CacheError(f"TUNER_CACHE_LIMIT must be a number of GB above 0, but is {text!r}")


def _last_used(folder: Path) -> float | None:
    """When; None for a folder that is no cache."""
    for name in (MANIFEST, "journal.jsonl"):
        with suppress(OSError):
            return (folder / name).stat().st_mtime
    return None


def _remove(folder: Path) -> bool:
    """Remove a cache, or what a killed build left of one; False where a process builds it or has it open."""
    try:
        with FileLock(folder.with_name(folder.name.removesuffix(BUILDING) + ".lock"), timeout=0):
            with suppress(FileNotFoundError), (folder / MANIFEST).open("rb") as manifest:
                fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / MANIFEST).unlink()  # who waits for the lock sees that there is no cache any more
            shutil.rmtree(folder, ignore_errors=True)
            return True
    except (Timeout, BlockingIOError):
        return False
