"""One driver to the searches of an experiment in an object store, which knows no locks.

A lease is an object, `lease.0001`, that names its driver; the driver writes it anew every few seconds. One that is not
renewed for a minute is dead: whoever finds it so creates the next number, which the store lets only one do. The highest
number holds; a driver that was only asleep finds it before it writes anything more, and stops.

No clock is compared with another machine's: the age of a lease is told by the store's own, waiting by this process's.
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
from tuner.storage.place import Place

RENEW_SECONDS, STALE_SECONDS, POLL_SECONDS = 10.0, 60.0, 1.0


class _Held(NamedTuple):
    number: int
    content: bytes

    @property
    def driver(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.content)
        return facts


class Lease:
    """An object that is renewed as long as its driver lives."""

    def __init__(
        self,
        directory: UPath,
        driver: Mapping[str, Any],
        describe: Callable[[Mapping[str, Any]], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take it; after a driver was killed this may take a minute.

        Args:
            directory: where the lease is kept.
            driver: facts about this driver, for the one who is refused.
            describe: makes a sentence of such facts.
            clock: counts seconds, from whenever.

        Raises:
            SearchError: another driver has it; says which.
        """
        self._directory, self._driver, self._describe, self._clock = directory, driver, describe, clock
        self._token, self._renewals = uuid.uuid4().hex, 0
        self._taken_by: str | None = None  # another driver
        self._released = threading.Event()
        self._writing = threading.Lock()
        before = self._wait_for_the_last_one()
        self._number = before.number + 1 if before else 1
        self._renewed = clock()
        if not create(self._object(self._number), self._content()):
            raise self._refused(self._newest())
        if before:
            self._object(before.number).unlink(missing_ok=True)
        threading.Thread(target=self._renew_for_ever, name="lease", daemon=True).start()

    def check(self) -> None:
        """A process that slept through its own renewals looks before it writes.

        Raises:
            SearchError: another driver has taken over.
        """
        if self._clock() - self._renewed > 2 * RENEW_SECONDS:
            self.renew()
        if self._taken_by is not None:
            raise SearchError(
                f"{self._taken_by}: it has taken over in {self._directory}, since nothing was heard of this driver for "
                f"{STALE_SECONDS:g} s; this one stops"
            )

    def renew(self) -> None:
        """Say that this driver lives, unless another has taken over."""
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
        """Let another driver have it, now rather than in a minute."""
        with self._writing:
            self._released.set()
            if self._taken_by is None:
                try:
                    self._object(self._number).unlink(missing_ok=True)
                except Exception:  # each store's library has its own; what ended the search must still be told
                    logging.getLogger(__name__).exception("the lease of the search could not be given back")

    def _wait_for_the_last_one(self) -> _Held | None:
        """The lease of a driver that is dead; None where there is none, or it is released meanwhile.

        Raises:
            SearchError: it is renewed.
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

    def _renew_for_ever(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                self.renew()
            except Exception:  # each store's library has its own; the next renewal may succeed
                logging.getLogger(__name__).exception("the lease of the search could not be renewed")

    def _newest(self) -> _Held | None:
        numbers = sorted(int(path.suffix[1:]) for path in self._directory.glob("lease.*"))
        try:
            return _Held(numbers[-1], self._object(numbers[-1]).read_bytes()) if numbers else None
        except FileNotFoundError:
            return None

    def _age(self, held: _Held) -> float:
        """Seconds since it was renewed, by the store's clock."""
        now = self._directory / f"now-{self._token}"
        now.write_bytes(b"")
        try:
            modified = self._directory.fs.modified
            return float((modified(now.path) - modified(self._object(held.number).path)).total_seconds())
        except FileNotFoundError:
            return 0.0  # released meanwhile: the next look finds that
        finally:
            now.unlink()

    def _object(self, number: int) -> UPath:
        return self._directory / f"lease.{number:04d}"

    def _content(self) -> bytes:
        return json.dumps({**self._driver, "token": self._token, "renewals": self._renewals}).encode()

    def _refused(self, held: _Held | None) -> SearchError:
        return refusal(self._describe(held.driver if held else {}), self._directory)


def refusal(sentence: str, folder: Place) -> SearchError:
    """What the second driver is told, after a sentence about the first."""
    return SearchError(f"{sentence} in {folder}; wait for its end or stop it, or choose another --storage")
