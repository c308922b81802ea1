"""A lock for object stores, which have none: a lease that its driver renews.

A lease is an object, `lease.0001`, that names its driver. The driver rewrites it every RENEW_SECONDS. A lease that was
not renewed for STALE_SECONDS is stale: another driver may create the lease of the next number, and the store lets only
one driver do that. The highest number is valid. A driver that was suspended, and not dead, finds the higher number
before its next write, and stops.

No clocks of two machines are compared: the age of a lease is the difference of two times of the store, and this process
measures its own waiting.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from upath import UPath

from tuner.errors import SearchError
from tuner.storage.append_log import create
from tuner.storage.place import taken

RENEW_SECONDS, STALE_SECONDS, POLL_SECONDS = 10.0, 60.0, 1.0


class _Held(NamedTuple):
    """A lease as it was read."""

    number: int
    content: bytes

    @property
    def driver(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.content)
        return facts


class Lease:
    """A lease that a thread renews until it is released or the process ends."""

    def __init__(
        self,
        directory: UPath,
        driver: Mapping[str, Any],
        describe: Callable[[Mapping[str, Any]], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the lease. Where the last driver was killed, this waits until its lease is stale.

        Args:
            directory: the folder of the leases.
            driver: facts about this driver, stored for a driver that does not get the lease.
            describe: makes a sentence of such facts.
            clock: a time in seconds; only differences matter.

        Raises:
            SearchError: another driver has the lease; the message describes it.
        """
        self._directory, self._driver, self._describe, self._clock = directory, driver, describe, clock
        self._token, self._renewals = uuid.uuid4().hex, 0
        self._taken_by: str | None = None  # a sentence about another driver
        self._released = threading.Event()
        self._writing = threading.Lock()
        before = self._wait_until_stale()
        self._number = before.number + 1 if before else 1
        self._renewed = clock()
        if not create(self._object(self._number), self._content()):
            raise self._refused(self._newest())
        if before:
            self._object(before.number).unlink(missing_ok=True)
        threading.Thread(target=self._keep_renewing, name="lease", daemon=True).start()

    def check(self) -> None:
        """Call this before every write: a process that was suspended has missed its renewals.

        Raises:
            SearchError: another driver has taken over.
        """
        if self._clock() - self._renewed > 2 * RENEW_SECONDS:
            self.renew()
        if self._taken_by is not None:
            raise SearchError(
                f"{self._taken_by}: it has taken over in {self._directory}, because this driver did not renew its "
                f"lease for {STALE_SECONDS:g} s; this driver stops"
            )

    def renew(self) -> None:
        """Rewrite the lease, unless another driver has taken over."""
        with self._writing:
            if self._released.is_set() or self._taken_by is not None:
                return
            newest = self._newest()
            if newest is not None and newest.number > self._number:
                self._taken_by = self._describe(newest.driver)
                return
            self._renewals += 1
            self._object(self._number).write_bytes(self._content())
            self._renewed = self._clock()

    def release(self) -> None:
        """Remove the lease, so that another driver need not wait until it is stale."""
        with self._writing:
            self._released.set()
            if self._taken_by is None:
                try:
                    self._object(self._number).unlink(missing_ok=True)
                except Exception:  # each store's library has its own; it must not hide the error that ended the search
                    logging.getLogger(__name__).exception("the lease of the search could not be removed")

    def _wait_until_stale(self) -> _Held | None:
        """Wait for the end of an existing lease.

        Returns:
            The lease, which is stale now; None where there is none, or its driver has released it.

        Raises:
            SearchError: its driver has renewed it.
        """
        held = self._newest()
        if held is None:
            return None
        since = self._clock() - self._age(held)
        while self._clock() - since < STALE_SECONDS:
            time.sleep(POLL_SECONDS)
            now = self._newest()
            if now is None:
                return None
            if now != held:
                raise self._refused(now)
        return held

    def _keep_renewing(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                self.renew()
            except Exception:  # each store's library has its own classes; the next renewal may succeed
                logging.getLogger(__name__).exception("the lease of the search could not be renewed")

    def _newest(self) -> _Held | None:
        numbers = sorted(int(path.suffix[1:]) for path in self._directory.glob("lease.*"))
        try:
            return _Held(numbers[-1], self._object(numbers[-1]).read_bytes()) if numbers else None
        except FileNotFoundError:
            return None

    def _age(self, held: _Held) -> float:
        """Seconds since the lease was renewed, by the clock of the store."""
        now = self._directory / f"now-{self._token}"
        now.write_bytes(b"")
        try:
            modified = self._directory.fs.modified
            return float((modified(now.path) - modified(self._object(held.number).path)).total_seconds())
        except FileNotFoundError:
            return 0.0  # released meanwhile, as the next read will show
        finally:
            now.unlink()

    def _object(self, number: int) -> UPath:
        return self._directory / f"lease.{number:04d}"

    def _content(self) -> bytes:
        return json.dumps({**self._driver, "token": self._token, "renewals": self._renewals}).encode()

    def _refused(self, held: _Held | None) -> SearchError:
        return taken(self._describe(held.driver if held else {}), self._directory)
