"""Notices that the head of a Ray cluster is gone.

Ray ends a driver a minute after its head is gone, from C++: nothing is closed, and no message is printed. This module
notices the loss earlier.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.background import repeated

# Seconds without an answer: longer than a short failure of the network, shorter than Ray's own 60.
PATIENCE_SECONDS = 30.0
CHECK_SECONDS = 1.0


@contextmanager
def watch(
    address: str, on_lost: Callable[[], None], print_line: Callable[[str], None], patience: float = PATIENCE_SECONDS
) -> Iterator[None]:
    """While the block runs, call `on_lost` (from a thread) if the head does not answer for too long.

    Args:
        address: HOST:PORT of the head.
        on_lost: called once when the head is gone; again, where it raises an exception.
        print_line: prints a sentence where the watch itself fails; it goes on.
        patience: seconds without an answer after which it counts as gone.
    """
    host, _, port = address.rpartition(":")
    answered = time.monotonic()

    def look() -> bool:
        nonlocal answered
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > patience:
                on_lost()
                return True
        return False

    with repeated(f"watching Ray's head at {address}", look, CHECK_SECONDS, print_line):
        yield
