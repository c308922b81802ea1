"""Notices when the head of a Ray is gone.

Ray ends a driver a minute after its head has gone, in C++, with nothing closed and nothing said to whoever waits for
it. This notices before that.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Seconds without an answer: longer than a hiccup of the network, shorter than Ray's own 60.
PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 1.0


@contextmanager
def watch(address: str, lost: Callable[[], None], patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """While the block runs, call `lost` (once, from a thread) if nobody answers for too long.

    Args:
        address: HOST:PORT of the head.
        lost: told when it is gone.
        patience: seconds without an answer.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(address, lost, patience, over), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _look(address: str, lost: Callable[[], None], patience: float, over: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while not over.wait(LOOK_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > patience:
                lost()
                return
