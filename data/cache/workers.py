"""Runs a function over many jobs in other processes; the items that it gives come in the order of the jobs.

This is not multiprocessing: its spawn and forkserver methods import the caller's __main__ again (in a Ray worker Ray's
own script, in a script without a guard the whole program), and its fork method copies a process that runs threads. Here
a child is a fresh interpreter that imports this module and the function's module, and nothing else. It reads jobs from
its standard input, so it exits when the parent is gone, however the parent died.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

Job = TypeVar("Job")
Item = TypeVar("Item")

_END = object()  # of a job's items

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from data.cache.workers import _serve; _serve()"


def map_in_order(
    function: Callable[[Job], Iterable[Item]], jobs: Iterable[Job], num_workers: int, *, ahead: int = 16
) -> Generator[Iterator[Item]]:
    """Yields the items of function(job) for every job, in order, computed by `num_workers` processes a few jobs ahead.

    Args:
        function: importable by name (not from __main__). The function, the jobs and the items are pickled.
        jobs: read as the work proceeds.
        num_workers: processes; they are killed when the iterator ends or is closed.
        ahead: items of a job that wait in memory; a process with more waits until they are taken.

    Yields:
        An iterator over the items of the next job, which must be used up before the job after it. It raises
        ChildProcessError where a process ended in the middle of the job (killed for its memory, or crashed in a
        library), and the exception that `function` raised.
    """
    processes = [_start(function) for _ in range(num_workers)]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def work(job: Job, items: _Items) -> None:
        process = idle.get()
        try:
            items.fill(_call(process, job))
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(num_workers, thread_name_prefix="workers")
    waiting: deque[_Items] = deque()
    try:
        for job in jobs:
            waiting.append(_Items(ahead))
            threads.submit(work, job, waiting[-1])
            if len(waiting) > num_workers + 1:  # items that are not yet taken stay in memory
                yield waiting[0].taken()
                waiting.popleft()
        while waiting:
            yield waiting[0].taken()
            waiting.popleft()
    finally:
        for process in processes:
            process.kill()
        for items in waiting:
            items.abandon()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.wait()
            _close(process)


class _Items:
    """The items of one job, on their way from the thread that reads them to the one that takes them."""

    def __init__(self, ahead: int) -> None:
        self._room = threading.Semaphore(ahead)
        self._queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def fill(self, items: Iterator[Any]) -> None:
        """Takes the items from a process, while there is room for them; an exception is passed on as the last one."""
        try:
            while self._room.acquire() and (item := next(items, _END)) is not _END:
                self._queue.put(("item", item))
            self._queue.put(("end", None))
        except Exception as error:
            self._queue.put(("error", error))

    def taken(self) -> Iterator[Any]:
        """Yields the items as they come."""
        while (kind_and_item := self._queue.get())[0] == "item":
            self._room.release()
            yield kind_and_item[1]
        if kind_and_item[0] == "error":
            raise kind_and_item[1]

    def abandon(self) -> None:
        """Lets `fill` go on to the end: the process has been killed, so it finds none soon."""
        self._room.release(1 << 20)


def _start(function: Callable[[Any], Any]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # the processes are parallel already
    )
    _send(process, function)
    return process


def _send(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin is not None
    pickle.dump(value, process.stdin)
    process.stdin.flush()


def _call(process: subprocess.Popen[bytes], job: object) -> Iterator[Any]:
    assert process.stdout is not None
    try:
        _send(process, job)
        while (outcome := pickle.load(process.stdout)) is not None:
            error, item = outcome
            if error is not None:
                raise error
            yield item
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        raise ChildProcessError(f"a worker process ended in the middle of its job ({_ending(process)})") from None


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    try:
        process.stdin.close()
    except BrokenPipeError:  # closing flushes to a process that has ended
        return


def _serve() -> None:
    """Runs in the child: reads a function, then jobs, until the input ends; writes each job's items as they come."""
    # Ctrl-C reaches all processes of a terminal; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inlet, outlet = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the items
    function = pickle.load(inlet)

    def write(outcome: tuple[Exception | None, Any] | None) -> None:
        try:
            pickle.dump(outcome, outlet)
            outlet.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(1)

    while True:
        try:
            job = pickle.load(inlet)
        except EOFError:
            return
        try:
            for item in function(job):
                write((None, item))
        except Exception as error:
            write((error, None))
        else:
            write(None)
