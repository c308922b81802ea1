"""Notices that the head of a Ray cluster is gone.

Ray ends a driver a minute after its head is gone, from C++: nothing is closed, and no message is printed. This module
notices the loss earlier.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Seconds without an answer: longer than a short failure of the network, shorter than Ray's own 60.
PATIENCE_SECONDS = 30.0
CHECK_SECONDS = 1.0


@contextmanager
def watch(address: str, on_lost: Callable[[], None], patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """While the block runs, call `on_lost` (once, from a thread) if the head does not answer for too long.

    Args:
        address: HOST:PORT of the head.
        on_lost: called when the head is gone.
        patience: seconds without an answer after which it counts as gone.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, on_lost, patience, ended), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _watch(address: str, on_lost: Callable[[], None], patience: float, ended: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while not ended.wait(CHECK_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > patience:
                on_lost()
                return
