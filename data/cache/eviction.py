"""Removes caches to free space for a new one: the least recently used first, never one that a process has open.

A process that opens a cache holds a shared lock on its manifest for as long as it uses the columns; the kernel drops
the lock when the process ends. Opening also sets the manifest's modification time, the time of last use. Between two
trials of a search a node may have no process at all, so a cache that was used within the last hour is kept as well. The
working folders of killed builds are removed by the same rules.

Without $TUNER_CACHE_LIMIT (in GB, for all caches of the folder together) caches are removed only where the disk has no
space for the new one.
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

from data.cache.columns import BUILDING, MANIFEST
from data.cache.journal import JOURNAL
from data.errors import CacheError

IDLE_SECONDS = 3600.0
GIGABYTE = 1e9


def hold(folder: Path) -> IO[bytes]:
    """Opens a cache's manifest and keeps the cache from being removed until the manifest is closed.

    Raises:
        FileNotFoundError: there is no cache in the folder.
    """
    while True:
        manifest = (folder / MANIFEST).open("rb")
        try:
            fcntl.flock(manifest, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(manifest.fileno()), (folder / MANIFEST).stat()):
                with suppress(OSError):  # a folder that this user may only read
                    os.utime(manifest.fileno())
                return manifest
        except BaseException:
            manifest.close()
            raise
        manifest.close()  # the cache was removed, and perhaps built again, before we had the lock


def evict(directory: Path, need: int, keep: Path) -> list[str]:
    """Removes caches until `need` more bytes are available in `directory`, or nothing is left to remove.

    Args:
        directory: the folder of all caches.
        need: bytes.
        keep: the folder of the cache that needs the space; it and its working folder stay.

    Returns:
        A sentence for each cache that was removed.
    """
    limit = _limit()
    folders = [path for path in directory.iterdir() if path.name.removesuffix(BUILDING) != keep.name and path.is_dir()]
    used = {folder: last_used for folder in folders if (last_used := _last_used(folder)) is not None}
    removed: list[str] = []
    for folder in sorted(used, key=lambda folder: used[folder]):
        idle = time.time() - used[folder]  # wall-clock time, as in the file system
        if idle < IDLE_SECONDS or _available_bytes(directory, limit) >= need:
            break
        size = size_of(folder)
        if _remove(folder):
            removed.append(
                f"removed {folder} ({size / GIGABYTE:.2f} GB, last used {idle / 3600:,.0f} h ago) to free space"
            )
    return removed


def available_bytes(directory: Path) -> int:
    """Returns the bytes that another cache may take: what is free on the disk, within $TUNER_CACHE_LIMIT."""
    return _available_bytes(directory, _limit())


def size_of(folder: Path) -> int:
    """Returns the bytes of all files in a folder."""
    total = 0
    with suppress(FileNotFoundError):  # another process is removing the folder
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return total


def _available_bytes(directory: Path, limit: float) -> int:
    free = shutil.disk_usage(directory).free
    return free if limit == float("inf") else min(free, int(limit) - size_of(directory))


def _limit() -> float:
    """Returns the bytes that all caches may take together, from $TUNER_CACHE_LIMIT.

    Raises:
        CacheError: the variable is not a number above 0.
    """
    text = os.environ.get("TUNER_CACHE_LIMIT")
    if not text:
        return float("inf")
    with suppress(ValueError):
        if float(text) > 0:
            return float(text) * GIGABYTE
    raise CacheError(f"TUNER_CACHE_LIMIT must be a number of GB above 0, but is {text!r}")


def _last_used(folder: Path) -> float | None:
    """Returns when a cache was last used, in seconds since the epoch; None for a folder that is no cache."""
    for name in (MANIFEST, JOURNAL):
        with suppress(OSError):
            return (folder / name).stat().st_mtime
    return None


def _remove(folder: Path) -> bool:
    """Removes a cache, or the working folder of a killed build; returns False where a process builds or uses it."""
    try:
        with FileLock(folder.with_name(folder.name.removesuffix(BUILDING) + ".lock"), timeout=0):
            with suppress(FileNotFoundError), (folder / MANIFEST).open("rb") as manifest:
                fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / MANIFEST).unlink()  # a process that waits for the lock then finds no cache
            shutil.rmtree(folder, ignore_errors=True)
            return True
    except (Timeout, BlockingIOError):
        return False
