"""Turns on the CPUs of one machine: more workers may be ready than train, and the others wait here.

A worker needs seconds before its first step: for its process, Ray, torch and the data. Where all trials run on the CPUs
of one machine, a worker asks Ray for half of its slot, so that the worker of the next trial starts while the last one
trains. Which of them trains is decided by locks on files, which are released when their process ends, however it ends.

The worker that is ready first trains first, unless the free slots are due to earlier trials whose workers still start:
two trials that start together take seconds each, and with one slot two runs of a search would differ.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# The part of a slot's CPUs that a worker asks Ray for, where workers take turns.
SHARE = 0.5
# Seconds between two attempts to get a slot.
POLL = 0.05


@contextmanager
def starting(search_id: str, number: int) -> Iterator[None]:
    """Announce, from a trial's actor, that its worker starts; until that worker trains, or this process ends."""
    with FileLock(_announcement(_directory(search_id), number)):
        yield


@contextmanager
def turn(search_id: str, number: int, slots: int) -> Iterator[None]:
    """Wait, in a trial's worker, for one of the machine's `slots`, and hold it while the block runs."""
    directory = _directory(search_id)
    lock = _wait(directory, number, [FileLock(directory / f"slot-{slot}") for slot in range(slots)])
    try:
        _announcement(directory, number).unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def forget(search_id: str) -> None:
    """Remove the files of the locks after a search."""
    shutil.rmtree(_directory(search_id), ignore_errors=True)


def _wait(directory: Path, number: int, locks: list[FileLock]) -> FileLock:
    while True:
        free = [lock for lock in locks if _acquired(lock)]
        mine = len(free) > _expected(directory, number)
        for lock in free[mine:]:
            lock.release()
        if mine:
            return free[0]
        time.sleep(POLL)


def _expected(directory: Path, number: int) -> int:
    """How many earlier trials have workers that still start."""
    count = 0
    for announcement in directory.glob("trial-*"):
        if announcement < _announcement(directory, number):
            lock = FileLock(announcement)
            count += not _acquired(lock)
            lock.release()
    return count


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _announcement(directory: Path, number: int) -> Path:
    return directory / f"trial-{number:09d}"


def _directory(search_id: str) -> Path:
    directory = Path(tempfile.gettempdir()) / f"tuner-slots-{search_id}"
    directory.mkdir(exist_ok=True)
    return directory
