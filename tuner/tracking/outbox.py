"""Writes to a server that may be away for a while: one thread delivers them, in order.

A write that failed and may succeed later is repeated until it does; the writes behind it wait. `close` limits the wait.
After the first write that is given up, no further one is delivered, so that the runs have no gaps and a resumed search
can continue them.
"""

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tuner.background import keep_working
from tuner.redact import redacted

RETRY_SECONDS = 2.0  # between two attempts at a write
PATIENCE_SECONDS = 120.0  # seconds without success, after `close`, until the rest is given up
# A write that failed so often although the server answered another request after each failure counts as refused.
MAX_FAILURES = 30
# Waiting writes; a report takes 1.5 kB. So many come from a thousand trials that report every 20 seconds in an hour.
MAX_WAITING = 200_000
NOTICE_SECONDS = 10.0  # that `close` waits before it says why

Write = Callable[[], None]
_log = logging.getLogger(__name__)


class Outbox:
    """Delivers writes on its own thread; `put` returns at once."""

    def __init__(
        self,
        is_transient: Callable[[Exception], bool],
        answers: Callable[[], bool],
        mend: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the thread.

        Args:
            is_transient: whether a write that raised this error may succeed later.
            answers: whether the server answers a request now.
            mend: called where a write was refused; returns whether it has removed a reason, so that it is tried again.
        """
        self._is_transient, self._answers, self._mend = is_transient, answers, mend
        self._waiting: queue.SimpleQueue[tuple[Write, str] | None] = queue.SimpleQueue()
        self._together: list[Write] | None = None  # the writes that become one
        self._given_up = threading.Event()
        self._closing_since: float | None = None
        self._last_success = 0.0
        self.undelivered = 0  # number of writes given up, which a resumed search may repeat
        self.refused: list[str] = []  # the errors of the writes that the server refused for good
        self.lacking: set[str] = set()  # the subjects of these writes
        self._thread = keep_working("writing to MLflow", self._deliver_next)

    def put(self, write: Write, about: str = "") -> None:
        """Deliver `write` after all that were put before it; `about` is its subject, for `lacking`."""
        if self._together is not None:
            self._together.append(write)
        elif self.undelivered or self._waiting.qsize() >= MAX_WAITING:
            self.undelivered += 1
        else:
            self._waiting.put((write, about))

    @contextmanager
    def together(self, about: str) -> Iterator[None]:
        """Make one write of all that the block puts; each of them must do nothing where it has been done before."""
        writes: list[Write] = []
        self._together = writes
        try:
            yield
        finally:
            self._together = None
            self.put(partial(_all, writes), about)

    def put_last(self, write: Write) -> None:
        """Deliver `write` even if writes before it were given up, for example one that closes a run."""
        self._waiting.put((write, ""))

    def close(self, patience: float = PATIENCE_SECONDS, print_line: Callable[[str], None] = _log.warning) -> int:
        """Deliver the remaining writes and stop the thread; Ctrl-C ends the wait.

        Args:
            patience: seconds without success until the rest is given up.
            print_line: prints a line about the wait, if it is long.

        Returns:
            How many writes were given up.
        """
        self._patience, self._closing_since = patience, time.monotonic()
        self._waiting.put(None)
        try:
            self._thread.join(NOTICE_SECONDS)
            if self._thread.is_alive():
                print_line(f"waiting for MLflow to accept {self._waiting.qsize()} more writes; Ctrl-C ends the wait")
                self._thread.join()
        except KeyboardInterrupt:
            self._given_up.set()
            return self.undelivered + max(1, self._waiting.qsize())
        return self.undelivered

    def _deliver_next(self) -> bool:
        """Deliver the next write; returns whether it was the last one."""
        waiting = self._waiting.get()
        if waiting is None:
            return True
        if self._given_up.is_set() or not self._deliver(*waiting):
            self._given_up.set()
            self.undelivered += 1
        return False

    def _deliver(self, write: Write, about: str) -> bool:
        """Deliver a write, or note that it is refused; False where it was given up."""
        warned, mended, failures = False, False, 0
        while True:
            try:
                write()
                self._last_success = time.monotonic()
                return True
            except Exception as error:
                # MLflow passes on whatever its store raises. The write is lost at worst, and the journal has the same
                # content; the search must not end.
                transient = self._is_transient(error)
                failures += transient and self._answers()
                if not (transient or mended):
                    mended = self._mended()
                    if mended:
                        continue
                if not transient or failures >= MAX_FAILURES:
                    self.lacking.add(about)
                    self.refused.append(redacted(str(error) or type(error).__name__))
                    _log.error("MLflow refused a write\n%s", redacted(traceback.format_exc()))
                    return True
                if not warned:
                    _log.warning("MLflow does not accept a write, which will be repeated: %s", redacted(str(error)))
                    warned = True
                if self._is_over() or self._given_up.wait(RETRY_SECONDS):
                    return False

    def _mended(self) -> bool:
        try:
            return self._mend()
        except Exception:  # as above: the write is lost at worst
            _log.error("MLflow could not be mended\n%s", redacted(traceback.format_exc()))
            return False

    def _is_over(self) -> bool:
        since = self._closing_since
        return since is not None and time.monotonic() - max(since, self._last_success) > self._patience


def _all(writes: list[Write]) -> None:
    for write in writes:
        write()
