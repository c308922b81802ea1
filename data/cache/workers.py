"""Runs a function over many jobs in other processes; results come in the order of the jobs.

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
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from data.cache.workers import _serve; _serve()"


def map_in_order(function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int) -> Generator[Result]:
    """Yields function(job) for every job, in order, computed by `num_workers` processes a few jobs ahead.

    Args:
        function: importable by name (not from __main__). The function, the jobs and the results are pickled.
        jobs: read as the work proceeds.
        num_workers: processes; they are killed when the iterator ends or is closed.

    Raises:
        ChildProcessError: a process ended in the middle of a job (killed for its memory, or crashed in a library).
        Exception: the exception that `function` raised.
    """
    processes = [_start(function) for _ in range(num_workers)]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def call(job: Job) -> Result:
        process = idle.get()
        try:
            result: Result = _call(process, job)
            return result
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(num_workers, thread_name_prefix="workers")
    try:
        ahead: deque[Future[Result]] = deque()
        for job in jobs:
            ahead.append(threads.submit(call, job))
            if len(ahead) > num_workers + 1:  # results that are not yet taken stay in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for process in processes:
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.wait()
            _close(process)


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


def _call(process: subprocess.Popen[bytes], job: object) -> Any:
    assert process.stdout is not None
    try:
        _send(process, job)
        error, result = pickle.load(process.stdout)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        raise ChildProcessError(f"a worker process ended in the middle of its job ({_ending(process)})") from None
    if error is not None:
        raise error
    return result


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
    """Runs in the child: reads a function, then jobs, until the input ends; writes an outcome for each job."""
    # Ctrl-C reaches all processes of a terminal; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inlet, outlet = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the results
    function = pickle.load(inlet)
    while True:
        try:
            job = pickle.load(inlet)
        except EOFError:
            return
        outcome: tuple[Exception | None, Any]
        try:
            outcome = None, function(job)
        except Exception as error:
            outcome = error, None
        try:
            pickle.dump(outcome, outlet)
            outlet.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(1)
