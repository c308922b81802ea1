"""Threads that go on whatever happens in them: an exception is said, and the work is called again.

A thread of Python ends with the first exception that nobody catches. What it did is then not done any more, and nothing
says so. Every thread of this program that does something again and again is started here.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.errors import in_one_line
from tuner.redact import redacted

AGAIN_SECONDS = 1.0  # until work that has raised an exception is called again

_log = logging.getLogger(__name__)


def keep_working(
    name: str, work: Callable[[], bool], print_line: Callable[[str], None] = _log.warning
) -> threading.Thread:
    """Start a thread that calls `work` until it returns True.

    Args:
        name: of the thread, and of the work in a sentence: "freeing placement groups".
        work: the work, or a part of it; True: it is done.
        print_line: prints a sentence about an exception; of equal ones in a row only the first.
    """

    def run() -> None:
        said = ""
        while True:
            try:
                if work():
                    return
                said = ""
            except Exception as error:  # whatever it is: the thread must not end
                failure = redacted(in_one_line(error))
                if failure != said:
                    _log.exception("%s failed", name)
                    print_line(f"{name} failed ({failure}); it is tried again every {AGAIN_SECONDS:g} s")
                said = failure
                time.sleep(AGAIN_SECONDS)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


@contextmanager
def repeated(
    name: str,
    work: Callable[[], bool | None],
    seconds: float,
    print_line: Callable[[str], None] = _log.warning,
    share: float = 1.0,
) -> Iterator[None]:
    """While the block runs, call `work` every `seconds` from a thread, until it returns True.

    Args:
        name: of the work, as in `keep_working`.
        work: the work.
        seconds: between the end of a call and the next one, at least.
        print_line: prints a sentence about an exception.
        share: the largest part of the time that the work may take: after a long call the thread waits longer.
    """
    ended = threading.Event()
    pause = seconds

    def once() -> bool:
        nonlocal pause
        if ended.wait(pause):
            return True
        began = time.monotonic()
        try:
            return bool(work())
        finally:
            pause = max(seconds, (time.monotonic() - began) / share)

    thread = keep_working(name, once, print_line)
    try:
        yield
    finally:
        ended.set()
        thread.join()
