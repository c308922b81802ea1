"""What is still to be told to a server that may be away: one thread tells it, in order.

A write that may succeed later is tried until it does; while it waits, so do those behind it. At the end patience is
limited, and from the first write that was not delivered on nothing is: what the server has is then a beginning without
gaps, which a resumed search goes on from.
"""

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable

from tuner.redact import redacted

RETRY_SECONDS = 2.0  # between two attempts at a write
# Seconds without success, once nothing more will come, until the rest is given up.
PATIENCE_SECONDS = 120.0
# A write that failed this often, and each time the server answered another question after it, will never be taken.
MOST_FAILURES = 30
# What waits at the most: 1.5 kB a report. An hour of a thousand trials that report every 20 seconds.
MOST_WAITING = 200_000
NOTICE_SECONDS = 15.0  # of waiting at the end, until the user is told why

Write = Callable[[], None]
_log = logging.getLogger(__name__)


class Outbox:
    """Delivers writes on a thread of its own; `put` never waits."""

    def __init__(self, is_passing: Callable[[Exception], bool], answers: Callable[[], bool]) -> None:
        """Start the thread.

        Args:
            is_passing: whether the write that raised this may succeed later.
            answers: whether the server can be asked something now.
        """
        self._is_passing, self._answers = is_passing, answers
        self._waiting: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._closing_since: float | None = None
        self._last_success = 0.0
        self.undelivered = 0  # writes that the server did not get and may get from a resumed search
        self.refused: list[str] = []  # what it said to those that it will never take
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, write: Write) -> None:
        """Deliver `write` after all that were put before it."""
        if self.undelivered or self._waiting.qsize() >= MOST_WAITING:
            self.undelivered += 1
        else:
            self._waiting.put(write)

    def put_last(self, write: Write) -> None:
        """Deliver `write` even where some before it were given up, such as one that closes what is open."""
        self._waiting.put(write)

    def close(self, patience: float = PATIENCE_SECONDS, say: Callable[[str], None] = _log.warning) -> int:
        """Deliver what is left and stop; Ctrl-C ends the wait.

        Returns:
            How many writes the server never got.
        """
        self._patience, self._closing_since = patience, time.monotonic()
        self._waiting.put(None)
        try:
            self._thread.join(NOTICE_SECONDS)
            if self._thread.is_alive():
                say(f"waiting for MLflow to take {self._waiting.qsize()} more writes; Ctrl-C ends the wait")
                self._thread.join()
        except KeyboardInterrupt:
            self._given_up.set()
            return self.undelivered + max(1, self._waiting.qsize())
        return self.undelivered

    def _deliver_all(self) -> None:
        while (write := self._waiting.get()) is not None:
            if self._given_up.is_set() or not self._deliver(write):
                self._given_up.set()
                self.undelivered += 1

    def _deliver(self, write: Write) -> bool:
        """Whether the server has taken the write, or will never; False when patience ends."""
        told, failures = False, 0
        while True:
            try:
                write()
                self._last_success = time.monotonic()
                return True
            except Exception as error:
                # MLflow raises whatever its store raises. What is at stake is a record that the journal has as well,
                # never the search.
                passing = self._is_passing(error)
                failures += passing and self._answers()
                if not passing or failures >= MOST_FAILURES:
                    self.refused.append(redacted(str(error) or type(error).__name__))
                    _log.error("MLflow refused a write\n%s", redacted(traceback.format_exc()))
                    return True
                if not told:
                    _log.warning("MLflow does not take a write, which is tried again: %s", redacted(str(error)))
                    told = True
                if self._is_over() or self._given_up.wait(RETRY_SECONDS):
                    return False

    def _is_over(self) -> bool:
        since = self._closing_since
        return since is not None and time.monotonic() - max(since, self._last_success) > self._patience
