"""Tune receives all reports of a trial before the trial ends."""

import queue
import threading
import time
from typing import Any

import pytest

from tuner.workers.relay import Relay, forward

EPOCHS: list[dict[str, Any]] = [{"epoch": epoch} for epoch in range(1, 6)]


class Train:
    """A controller that passes on its reports and ends at once, with an error or without."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reports: queue.Queue[Any] = queue.Queue(1)
        self._error = error
        self.ended = threading.Event()

    def fit(self) -> None:
        for metrics in EPOCHS:
            Relay(self.reports).after_report(None, [metrics, {"rank": 1}], None)
        self.ended.set()
        if self._error is not None:
            raise self._error


def test_the_last_report_of_a_trial_arrives_however_late_it_is_read() -> None:
    train, heard = Train(), []

    def report(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == len(EPOCHS) - 1:
            assert train.ended.wait(10)  # Train has ended, and its last report is still in the queue
            time.sleep(0.2)
        heard.append(metrics)

    forward(train.fit, train.reports, report)
    assert heard == EPOCHS


def test_an_error_is_raised_after_the_reports_before_it() -> None:
    train, heard = Train(error=ValueError("died")), []
    with pytest.raises(ValueError, match="died"):
        forward(train.fit, train.reports, heard.append)
    assert heard == EPOCHS
