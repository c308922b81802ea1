"""Tries again what failed on the way to the data: a network folder, an object store or a server is away for a while.

    content = retried(path.read_bytes, path)

    for attempt in attempts(path):        # the same for a block, of which each attempt runs the whole
        with attempt, path.open() as file:
            ...

Only errors that may pass are tried again (`may_pass`): a broken connection, a time-out, a server that is overloaded. A
missing file, a denied permission or a full disk is raised at once. What the bytes say is never a reason.
"""

import errno
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from data.errors import UnreachableError, first_line

T = TypeVar("T")

PATIENCE_SECONDS = 300.0  # without success, until it is given up
# The same for the first request to a store: its address may be wrong, and nothing has begun yet.
FIRST_PATIENCE_SECONDS = 20.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 10.0  # between two attempts; a pause is twice as long as the one before
NOTICE_SECONDS = 10.0  # of waiting, until a sentence says for what
WATCH_SECONDS = 1.0  # between two looks at how long calls take

_log = logging.getLogger(__name__)
# The disk ("") and the stores (s3://bucket) that were given up, until they answer: nobody waits so long for them again.
_given_up: set[str] = set()
_announced: set[str] = set()  # those for which a sentence has said that somebody waits, until they answer
_printers: list[Callable[[str], None]] = []  # for the sentences about long waits
# The attempts whose calls have not returned, by their ids, and the thread that looks at them.
_watching: dict[int, "Attempt"] = {}
_watcher: threading.Thread | None = None
_tick = threading.Event()  # never set

# What network file systems raise, and the libraries of the stores in place of the answers 409, 500 and 503.
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ESHUTDOWN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_PASSING_STATUS = {408, 409, 425, 429, *range(500, 600)} - {501, 505}  # of HTTP
# Exceptions for connections, by module. They are looked up only where the module is loaded.
_CONNECTIONS = {
    "botocore.exceptions": ("ConnectionError", "HTTPClientError", "IncompleteReadError"),
    "aiohttp": ("ClientError",),
    "http.client": ("IncompleteRead", "RemoteDisconnected"),
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
    "google.auth.exceptions": ("TransportError",),
}


def may_pass(error: BaseException | None) -> bool:
    """Returns whether the same operation may succeed later, without anybody changing something."""
    if error is None:
        return False
    # The libraries of stores raise an OSError in place of an answer that they have not expected, whatever it was.
    for each in (error, error.__cause__):
        if each is not None and (status := _status(each)) is not None:
            return status in _PASSING_STATUS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return any(
        isinstance(error, tuple(getattr(sys.modules[module], name) for name in names))
        for module, names in _CONNECTIONS.items()
        if module in sys.modules
    )


def retried(call: Callable[[], T], what: object, *, patience: float | None = None) -> T:
    """Returns `call()`, which is called again while it fails for a reason that may pass.

    Args:
        call: may be called several times, also after it has done its work without our hearing of it.
        what: the file or URL that it reads or writes, for messages.
        patience: seconds without success until it is given up; None: PATIENCE_SECONDS.

    Raises:
        UnreachableError: it failed for so long.
        Exception: what `call` raises for another reason, at once.
    """
    for attempt in attempts(what, patience=patience):
        with _watched(attempt), attempt:
            return call()
    raise AssertionError("unreachable: the last attempt returns or raises")


def attempts(what: object, *, patience: float | None = None) -> Iterator["Attempt"]:
    """Yields the attempts at a block of work, each to be used in a `with` statement, until one ends without an error.

    Raises:
        UnreachableError: they failed for `patience` seconds; None: for PATIENCE_SECONDS.
    """
    attempt = Attempt(what, PATIENCE_SECONDS if patience is None else patience)
    while not attempt.done:
        yield attempt


class Attempt:
    """A context manager that swallows an error which may pass, after a pause."""

    def __init__(self, what: object, patience: float) -> None:
        """Begins the wait for `what`, of `patience` seconds."""
        self._what, self._patience = str(what), patience
        scheme, is_url, rest = self._what.partition("://")
        self._store = f"{scheme}://{rest.partition('/')[0]}" if is_url else ""
        self.done = False
        self.progressed()

    def progressed(self) -> None:
        """Begins the wait anew: the block has got further than any attempt before."""
        self._since = time.monotonic()
        self._pause = FIRST_PAUSE_SECONDS

    def notice(self, why: str) -> None:
        """Says what it waits for, if that takes long; once until the store answers."""
        if self._store not in _announced and time.monotonic() - self._since >= NOTICE_SECONDS:
            _announced.add(self._store)
            for print_line in _printers or [_log.warning]:
                try:
                    print_line(f"waiting for {self._what} ({why})")
                except Exception:  # a screen that is gone must end neither the request nor the thread of `_watched`
                    _log.exception("what it waits for could not be printed")

    def __enter__(self) -> "Attempt":
        """Begins an attempt."""
        return self

    def __exit__(
        self, type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Ends the attempt; returns True where the block is to be tried again.

        Raises:
            UnreachableError: there will be no further attempt.
        """
        self.done = error is None
        if not may_pass(error):
            _given_up.discard(self._store)
            _announced.discard(self._store)
            return False
        assert error is not None
        waited = time.monotonic() - self._since
        patience = min(self._patience, FIRST_PATIENCE_SECONDS) if self._store in _given_up else self._patience
        if waited + self._pause > patience:
            _given_up.add(self._store)
            reason = f"cannot be reached: {text_of(error)} (tried for {waited:.0f} s)"
            raise UnreachableError(self._what, reason) from error
        self.notice(f"{text_of(error)}; for up to {patience:.0f} s")
        time.sleep(self._pause * random.uniform(0.5, 1.0))  # processes that failed together do not return together
        self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)
        return True


@contextmanager
def notices(print_line: Callable[[str], None]) -> Iterator[None]:
    """Passes the sentences about long waits to `print_line` during the block; otherwise they go to the log."""
    _printers.append(print_line)  # and not a handler of the logger, which other libraries disable
    try:
        yield
    finally:
        _printers.remove(print_line)


def text_of(error: BaseException) -> str:
    """Returns what an error says in one line, without the name of a file."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return first_line(error) or type(error).__name__


@contextmanager
def _watched(attempt: Attempt) -> Iterator[None]:
    """Says what an attempt waits for if the block takes long: a store's library may try again, in silence."""
    global _watcher
    if _watcher is None:
        _watcher = threading.Thread(target=_watch, name="notices", daemon=True)
        _watcher.start()
    _watching[id(attempt)] = attempt
    try:
        yield
    finally:
        del _watching[id(attempt)]


def _watch() -> None:
    while True:
        _tick.wait(WATCH_SECONDS)
        for attempt in list(_watching.values()):
            attempt.notice("no answer yet")


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an exception of botocore, requests, aiohttp or gcsfs stands for."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = (
            getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
        )
    return int(status) if isinstance(status, int) or (isinstance(status, str) and status.isdecimal()) else None
