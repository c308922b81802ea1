"""Several drivers on one object store, whose requests a test interleaves in any order, with a clock of its own.

Every driver runs in a thread, but one thread runs at a time, and it stops before each request to the store. A driver
that is not chosen for a while is one that was stopped (SIGSTOP), or whose request takes long. The store is fsspec's in
memory: every request happens at once and as a whole, and creating an object fails if it exists.
"""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

REQUESTS = ("glob", "cat", "cat_file", "exists", "modified", "open", "pipe_file", "rm", "rm_file")


class Driver(threading.Thread):
    """A driver; it waits before each request until it is chosen."""

    def __init__(self, schedule: "Schedule", work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.schedule, self.work = schedule, work
        self.chosen = threading.Semaphore(0)
        self.wakes = 0.0  # time at which its sleep ends
        self.inside = False  # of a request, which may make others of its own
        self.error: Exception | None = None

    def run(self) -> None:
        self.chosen.acquire()
        try:
            self.work()
        except Exception as error:  # the test looks at it
            self.error = error
        self.schedule.paused.release()

    def pause(self) -> None:
        self.schedule.paused.release()
        self.chosen.acquire()


class Schedule:
    """The drivers, the clock and the store."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.paused = threading.Semaphore(0)
        self.drivers: list[Driver] = []
        self._written: dict[str, float] = {}  # time of the last write, by path
        for name in REQUESTS:
            patch.setattr(MemoryFileSystem, name, self._request(name, getattr(MemoryFileSystem, name)))

    def add(self, work: Callable[[], None]) -> None:
        """Add a driver that does `work`."""
        self.drivers.append(Driver(self, work))
        self.drivers[-1].start()

    def run(self, number: int, requests: int) -> None:
        """Let a driver make so many requests, or fewer where it sleeps or ends."""
        driver = self.drivers[number]
        for _ in range(requests):
            if driver.is_alive() and driver.wakes <= self.now:
                driver.chosen.release()
                self.paused.acquire()
                if driver.error is not None or not driver.is_alive():
                    driver.join()

    def finish(self) -> None:
        """Let all drivers end, one after the other."""
        for number, driver in enumerate(self.drivers):
            while driver.is_alive():
                self.now = max(self.now, driver.wakes)
                self.run(number, 1)
                driver.join(0 if driver.error is None else None)

    def sleep(self, seconds: float) -> None:
        """What `time.sleep` is for the drivers."""
        driver = threading.current_thread()
        assert isinstance(driver, Driver)
        driver.wakes = self.now + seconds
        driver.pause()

    def _request(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def request(store: MemoryFileSystem, path: Any, *arguments: Any, **options: Any) -> Any:
            driver = threading.current_thread()
            outermost = isinstance(driver, Driver) and not driver.inside
            if outermost:
                driver.pause()
                driver.inside = True
            try:
                if name == "modified":
                    original(store, path)  # raises FileNotFoundError
                    return datetime(2026, 1, 1) + timedelta(seconds=self._written[store._strip_protocol(path)])
                if name == "pipe_file" or (name == "open" and "w" in str([*arguments, options.get("mode")])):
                    self._written[store._strip_protocol(path)] = self.now
                return original(store, path, *arguments, **options)
            finally:
                if outermost:
                    driver.inside = False

        return request
