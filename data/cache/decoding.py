"""The processes that decode shards: how many they are, and how much of the memory they may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Protocol, TypeVar

from data import machine
from data.cache.workers import map_in_order
from data.errors import CacheError
from data.ranges import is_whole
from data.tfrecord.framing import BLOCK_BYTES

# Fewer bytes are decoded in this process, in the 0.3 s that other processes take to start. Threads are no help: they
# share one core whatever their number (280 thousand videos/s with one, 230 with two).
_IN_PROCESS_BYTES = 256 << 20
# What decoding may take of the memory: this share, a process of it so much (a block, its features and an interpreter),
# and features of a process that wait to be taken up to so many blocks.
_MEMORY_SHARE, _WORKER_BYTES, _MAX_AHEAD = 4, 640 << 20, 16


class Job(Protocol):
    """What one call of the function decodes."""

    @property
    def path(self) -> str:
        """The shard, or the first one of several."""


AnyJob = TypeVar("AnyJob", bound=Job)
Item = TypeVar("Item")


def decoded(
    function: Callable[[AnyJob], Iterable[Item]], jobs: Sequence[AnyJob], *, num_bytes: int, workers: int | None
) -> Generator[Iterator[Item]]:
    """Yields the items of function(job) for every job, in order, each of which must be used up before the next.

    Args:
        function: decodes; importable by name.
        jobs: what it decodes.
        num_bytes: of the shards of all jobs.
        workers: processes; None: as many as the machine allows, or this process alone if the shards are small.

    Raises:
        CacheError: a process died.
    """
    small = workers is None and num_bytes < _IN_PROCESS_BYTES
    num_workers = min(len(jobs), workers or default_workers())
    if small or num_workers <= 1:
        yield from (iter(function(job)) for job in jobs)
        return
    ahead = min(max(machine.memory() // _MEMORY_SHARE // num_workers // BLOCK_BYTES, 2), _MAX_AHEAD)
    # Rows come back through pipes at 2 GB/s, which was measured to be faster than files.
    with closing(map_in_order(function, jobs, num_workers, ahead=ahead)) as outcomes:
        for job, items in zip(jobs, outcomes, strict=True):
            yield _told(job, items)


def _told(job: Job, items: Iterator[Item]) -> Iterator[Item]:
    try:
        yield from items
    except ChildProcessError as error:
        raise CacheError(
            f"{job.path}: decoding stopped: {error}; if the machine is short of memory, let fewer processes decode "
            "(data.decode_workers, or TUNER_DECODE_WORKERS)"
        ) from None


def default_workers() -> int:
    """Returns how many processes decode: $TUNER_DECODE_WORKERS, or as many as CPUs and memory of this machine allow.

    Raises:
        CacheError: the variable is not a whole number above 0.
    """
    text = os.environ.get("TUNER_DECODE_WORKERS")
    if not text:
        return max(1, min(int(machine.cpus()), machine.memory() // _MEMORY_SHARE // _WORKER_BYTES))
    if not (is_whole(text) and int(text)):
        raise CacheError(f"TUNER_DECODE_WORKERS must be a whole number above 0, but is {text!r}")
    return int(text)
