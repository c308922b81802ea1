"""A lock for object stores, which have none: a lease that its driver renews.

A lease is an object, `lease.0001`, that names its driver. The driver rewrites it every RENEW_SECONDS. A lease that was
not renewed for STALE_SECONDS is stale: another driver may create the lease of the next number, and the store lets only
one driver do that. The highest number is valid, and a number is never used twice: a driver that ends leaves its lease
with the note that it is released, and only older leases are removed.

A driver whose lease is not the valid one any more, by its number and its token, stops. It looks before and after each
line of the journal; what it writes between the two, after it was suspended, readers ignore (append_log.py).

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


def now() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class _Held(NamedTuple):
    """A lease as it was read."""

    number: int
    content: bytes

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.content)
        return facts

    @property
    def is_released(self) -> bool:
        return bool(self.facts.get("released"))


class Lease:
    """A lease that a thread renews until it is released or the process ends."""

    def __init__(
        self,
        directory: UPath,
        driver: Mapping[str, Any],
        describe: Callable[[Mapping[str, Any]], str],
        clock: Callable[[], float] = now,
    ) -> None:
        """Take the lease. Where the last driver was killed, this waits until its lease is stale.

        Args:
            directory: the folder of the leases.
            driver: facts about this driver, stored for a driver that does not get the lease.
            describe: makes a sentence of such facts.
            clock: a time in seconds; only differences matter.

        Raises:
            SearchError: another driver has the lease; the message describes it. Or the store does not refuse to create
                an object that exists, so nothing here can be locked.
        """
        self._directory, self._driver, self._describe, self._clock = directory, driver, describe, clock
        self._token, self._renewals = uuid.uuid4().hex, 0
        self._lost: str | None = None  # why this driver must stop
        self._released = threading.Event()
        self._writing = threading.Lock()
        self._probe()
        before = self._wait_until_free()
        self._number = before.number + 1 if before else 1
        self._renewed = clock()
        if not create(self._object(self._number), self._content()):
            raise self._refused(self._newest())
        numbers = self._numbers()
        if numbers[-1:] != [self._number]:  # others have taken and released it since: this number was used before
            self._object(self._number).unlink(missing_ok=True)
            raise self._refused(self._newest())
        for number in numbers:
            if number < self._number:
                self._object(number).unlink(missing_ok=True)
        threading.Thread(target=self._keep_renewing, name="lease", daemon=True).start()

    def check(self) -> None:
        """Call this before and after every write: a process that was suspended has missed its renewals.

        Raises:
            SearchError: another driver has taken over, or the lease is gone.
        """
        if self._clock() - self._renewed > 2 * RENEW_SECONDS:
            self.renew()
        elif self._lost is None:
            # A renewal that was sent late may be younger than the lease of a driver that has taken over. A driver that
            # takes over after this look reads the journal later still, so it finds the line that was just written.
            with self._writing:
                if not self._released.is_set() and self._numbers()[-1:] != [self._number]:
                    self._lost = self._loss(self._newest())
        if self._lost is not None:
            raise SearchError(f"{self._lost}; this driver stops")

    def renew(self) -> None:
        """Rewrite the lease, unless it is not the valid one any more."""
        with self._writing:
            if self._released.is_set() or self._lost is not None:
                return
            began = self._clock()  # of the renewal: another driver may see it from here on
            newest = self._newest()
            if not self._is_own(newest):
                self._lost = self._loss(newest)
                return
            self._renewals += 1
            self._object(self._number).write_bytes(self._content())
            self._renewed = began

    def release(self) -> None:
        """Note in the lease that it is released, so that another driver need not wait until it is stale."""
        with self._writing:
            self._released.set()
            if self._lost is None:
                try:
                    if self._is_own(self._newest()):
                        self._object(self._number).write_bytes(self._content(released=True))
                except Exception:  # each store's library has its own; it must not hide the error that ended the search
                    logging.getLogger(__name__).exception("the lease of the search could not be released")

    def _probe(self) -> None:
        """Refuse a store that replaces an object where it was asked to create one."""
        probe = self._directory / f"probe-{self._token}"
        try:
            if create(probe, b"first") and create(probe, b"second"):
                raise SearchError(
                    f"{self._directory}: the store replaces an object where it is asked to create a new one "
                    "(If-None-Match), so two drivers could write one search; use another store or a folder (--storage)"
                )
        finally:
            probe.unlink(missing_ok=True)

    def _wait_until_free(self) -> _Held | None:
        """Wait for the end of an existing lease.

        Returns:
            The last lease, which is released or stale; None where there never was one.

        Raises:
            SearchError: its driver has renewed it.
        """
        held = self._newest()
        if held is None or held.is_released:
            return held
        since = self._clock() - self._age(held)
        while self._clock() - since < STALE_SECONDS:
            time.sleep(POLL_SECONDS)
            newest = self._newest()
            if newest is None:
                return held  # somebody has removed it; its number is not used again
            if newest.is_released:
                return newest
            if newest != held:
                raise self._refused(newest)
        return held

    def _keep_renewing(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                self.renew()
            except Exception:  # each store's library has its own classes; the next renewal may succeed
                logging.getLogger(__name__).exception("the lease of the search could not be renewed")

    def _numbers(self) -> list[int]:
        return sorted(int(path.suffix[1:]) for path in self._directory.glob("lease.*"))

    def _newest(self) -> _Held | None:
        """The valid lease; None where there is none."""
        while numbers := self._numbers():
            try:
                return _Held(numbers[-1], self._object(numbers[-1]).read_bytes())
            except FileNotFoundError:
                continue  # the driver of a higher number has just removed it
        return None

    def _is_own(self, held: _Held | None) -> bool:
        return held is not None and held.number == self._number and held.facts.get("token") == self._token

    def _loss(self, newest: _Held | None) -> str:
        """Why this driver must stop, where its lease is not the valid one."""
        if newest is None or newest.number < self._number:
            return (
                f"{self._object(self._number)}: the lease of this driver is gone, somebody has removed it, so another "
                "driver may begin"
            )
        return (
            f"{self._describe(newest.facts)}: it has taken over in {self._directory}, because this driver did not "
            f"renew its lease for {STALE_SECONDS:g} s"
        )

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
            now.unlink(missing_ok=True)

    def _object(self, number: int) -> UPath:
        return self._directory / f"lease.{number:04d}"

    def _content(self, released: bool = False) -> bytes:
        notes = {"token": self._token, "renewals": self._renewals} | ({"released": True} if released else {})
        return json.dumps({**self._driver, **notes}).encode()

    def _refused(self, held: _Held | None) -> SearchError:
        return taken(self._describe(held.facts if held else {}), self._directory)
