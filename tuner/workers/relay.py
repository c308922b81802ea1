"""Carries a trial's reports from Train's controller to Tune, so that none is lost when the trial ends.

Ray's own callback (`TuneReportCallback`) uses a queue as well, which Tune's side of the trial's actor reads between two
checks of whether the trial has ended. Where the system suspends its process between them, as on a busy machine, the
last report stays in the queue (observed: one epoch of 2,000, while processes were killed all the time). Here the trial
ends when its queue is empty.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ray.train import UserCallback


class Queue(Protocol):
    """A queue between Ray actors, or between threads."""

    def put(self, item: Any) -> None:
        """Add an item; wait while the queue is full."""

    def get(self) -> Any:
        """Remove and return the first item; wait while the queue is empty."""


class Relay(UserCallback):
    """Puts every report into the queue; runs in Train's controller."""

    def __init__(self, reports: Queue) -> None:
        """Pass the reports to the queue `reports`."""
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass on the report of rank 0; those of other ranks are not used."""
        self._reports.put(metrics[0])


def forward(fit: Callable[[], object], reports: Queue, report: Callable[[dict[str, Any]], None]) -> None:
    """Run Train, and pass what comes through the queue to Tune, from the thread that Tune reads.

    Args:
        fit: runs Train's controller until it ends.
        reports: the queue that the controller fills.
        report: Tune's function; it returns when Tune has the report.

    Raises:
        Exception: what `fit` raised, after all reports before it.
    """
    ended: Future[object] = Future()

    def run() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:
            ended.set_exception(error)
        finally:
            reports.put(None)

    # A daemon, because Tune stops a trial by ending its process, whatever this thread waits for.
    threading.Thread(target=run, name="fit", daemon=True).start()
    while (metrics := reports.get()) is not None:
        report(metrics)
    ended.result()
