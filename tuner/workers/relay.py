"""The way of a trial's reports from Train's controller to Tune: none is lost when the trial ends.

Ray's own way (`TuneReportCallback`) puts them in a queue too, which Tune's side of the trial's actor asks between two
looks at whether the trial has ended: where its process stands still between them, as on a busy machine, the last report
is left in the queue (seen: one epoch of 2,000, in a storm of kills). Here the trial ends when its queue is empty.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ray.train.v2.api.callback import UserCallback


class Queue(Protocol):
    """Ray's queue between actors, or a thread's."""

    def put(self, item: Any) -> None:
        """Add it, when there is room."""

    def get(self) -> Any:
        """Take the first, when there is one."""


class Relay(UserCallback):
    """Puts every report into the queue, in Train's controller."""

    def __init__(self, reports: Queue) -> None:
        """Be told where."""
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Hand on what rank 0 said, whose reports count."""
        self._reports.put(metrics[0])


def tell(fit: Callable[[], object], reports: Queue, report: Callable[[dict[str, Any]], None]) -> None:
    """Run Train, and report what comes through the queue, in the thread that Tune listens to.

    Args:
        fit: runs Train's controller to its end.
        reports: what the controller says.
        report: Tune's; it returns when Tune has heard.

    Raises:
        Exception: what `fit` raised, when all that came before it is reported.
    """
    ended: Future[object] = Future()

    def run() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:
            ended.set_exception(error)
        finally:
            reports.put(None)

    # A daemon: Tune stops a trial by ending its process, whatever this waits for.
    threading.Thread(target=run, name="fit", daemon=True).start()
    while (metrics := reports.get()) is not None:
        report(metrics)
    ended.result()
