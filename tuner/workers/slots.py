"""Taking turns on one machine's CPUs: more workers may be ready than train, and one that is ready waits here.

A worker needs seconds before its first step: a process, Ray, torch, the data. Where all trials run on the CPUs of one
machine, a worker asks Ray for half of its slot, so that the next trial's worker starts while the last one trains; who
trains is settled by locks on files. They end with their process, however it ends.

Who is ready first trains first, unless the slots that are free are due to trials before it whose workers are still on
their way: two trials that start at once take seconds each, and with one slot a search would not run twice alike.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Of the slot's CPUs that a worker asks Ray for, where workers take turns.
SHARE = 0.5
# Seconds between two looks at the slots.
POLL = 0.05


@contextmanager
def on_its_way(search_id: str, number: int) -> Iterator[None]:
    """Say, as a trial's actor, that its worker will come; until that trains, or this process ends."""
    with FileLock(_way(_directory(search_id), number)):
        yield


@contextmanager
def turn(search_id: str, number: int, slots: int) -> Iterator[None]:
    """Wait, as a trial's worker, for one of the machine's `slots`, and hold it while the block runs."""
    directory = _directory(search_id)
    lock = _wait(directory, number, [FileLock(directory / f"slot-{slot}") for slot in range(slots)])
    try:
        _way(directory, number).unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def forget(search_id: str) -> None:
    """Remove the locks' files after a search."""
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
    """How many trials before this one are on their way."""
    count = 0
    for way in directory.glob("trial-*"):
        if way < _way(directory, number):
            lock = FileLock(way)
            count += not _acquired(lock)
            lock.release()
    return count


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _way(directory: Path, number: int) -> Path:
    return directory / f"trial-{number:09d}"


def _directory(search_id: str) -> Path:
    directory = Path(tempfile.gettempdir()) / f"tuner-slots-{search_id}"
    directory.mkdir(exist_ok=True)
    return directory
