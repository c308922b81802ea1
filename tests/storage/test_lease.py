"""A lease admits one driver at a time, even if drivers are killed or suspended and clocks differ."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from upath import UPath

from data import retry
from tuner.errors import SearchError
from tuner.storage import lease as module
from tuner.storage.lease import RENEW_SECONDS, STALE_SECONDS, Lease
from tuner.storage.lock import only_driver


class Clock:
    """A clock that advances when a test waits for it; `happens` is called after every wait, for what others do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.happens: Callable[[], Any] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def directory() -> UPath:
    return UPath(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def take(directory: UPath, clock: Clock) -> Iterator[Callable[[str], Lease]]:
    """Takes the lease for a driver of that name."""
    leases = []

    def take(name: str) -> Lease:
        leases.append(Lease(directory, {"name": name}, lambda facts: f"search of {facts['name']}", clock))
        return leases[-1]

    yield take
    for lease in leases:
        lease.release()


def objects(directory: UPath) -> list[str]:
    return sorted(path.name for path in directory.glob("*"))


def test_a_lease_names_its_driver_and_its_end_is_noted_in_it(directory: UPath, take: Callable[[str], Lease]) -> None:
    lease = take("first")
    facts = json.loads((directory / "lease.0001").read_text())
    assert facts["name"] == "first" and "released" not in facts
    lease.check()
    lease.release()
    assert objects(directory) == ["lease.0001"]
    assert json.loads((directory / "lease.0001").read_text())["released"] is True


def test_a_number_is_never_used_twice_and_older_leases_are_removed(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    began = clock.now
    for number in range(1, 4):
        take(f"driver {number}").release()
        assert objects(directory) == [f"lease.{number:04d}"]
    assert clock.now == began


def test_a_driver_that_wakes_after_another_one_has_ended_stops(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    first = take("first")
    second = take("second")
    second.release()
    with pytest.raises(SearchError, match=r"^search of second: it has taken over in memory://.*; this driver stops"):
        first.check()
    third = take("third")
    with pytest.raises(SearchError, match="this driver stops"):
        first.check()
    first.release()
    third.check()
    assert objects(directory) == ["lease.0003"]


def test_a_driver_whose_lease_somebody_has_removed_stops(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    lease = take("first")
    (directory / "lease.0001").unlink()
    clock.now += 3 * RENEW_SECONDS
    with pytest.raises(SearchError, match=r"lease.0001: the lease of this driver is gone.*; this driver stops$"):
        lease.check()
    assert objects(directory) == []


def test_a_lease_of_the_same_number_that_is_anothers_ends_the_driver(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    lease = take("first")
    (directory / "lease.0001").write_text(json.dumps({"name": "second", "token": "its own"}))
    clock.now += 3 * RENEW_SECONDS
    with pytest.raises(SearchError, match=r"^search of second: it has taken over"):
        lease.check()


def test_a_store_that_replaces_what_it_is_asked_to_create_is_refused(
    directory: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not know `If-None-Match` ignores it."""
    pipe = type(directory.fs._filesystem).pipe_file

    def ignorant(store: Any, path: str, content: bytes, mode: str = "overwrite", **options: Any) -> None:
        pipe(store, path, content, **options)

    monkeypatch.setattr(type(directory.fs._filesystem), "pipe_file", ignorant)
    with pytest.raises(SearchError, match=r"^memory://.*: the store replaces an object where it is asked to create"):
        take_lock(directory)
    assert objects(directory) == []


def take_lock(directory: UPath) -> None:
    with only_driver(directory, "s1"):
        pytest.fail("it cannot be locked")


def test_a_second_driver_is_refused_once_the_first_renews_its_lease(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    first = take("first")
    began = clock.now

    def renew_in_time() -> None:
        if clock.now - began >= RENEW_SECONDS:
            first.renew()

    clock.happens = renew_in_time
    with pytest.raises(SearchError, match=r"^search of first in memory://.*; wait until it ends"):
        take("second")
    assert clock.now - began < 2 * RENEW_SECONDS
    assert objects(directory) == ["lease.0001"]


def test_the_lease_of_a_killed_driver_is_taken_over_once_it_is_stale(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    first = take("first")
    began = clock.now
    second = take("second")
    assert clock.now - began == pytest.approx(STALE_SECONDS, abs=2)
    assert objects(directory) == ["lease.0002"]
    second.check()
    clock.now += 3 * RENEW_SECONDS  # it was suspended and checks before its next write
    with pytest.raises(SearchError, match=r"^search of second: it has taken over in memory://.*; this driver stops"):
        first.check()
    first.release()
    assert objects(directory) == ["lease.0002"]


def test_a_lease_that_is_stale_by_the_clock_of_the_store_is_taken_at_once(
    directory: UPath, take: Callable[[str], Lease], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    take("first")
    monkeypatch.setattr(Lease, "_age", lambda self, held: 3600.0)
    began = clock.now
    take("second")
    assert clock.now == began


def test_the_age_of_a_lease_is_measured_by_the_clock_of_the_store(
    directory: UPath, take: Callable[[str], Lease]
) -> None:
    lease = take("first")
    (held,) = [lease._newest()]
    assert held is not None and 0 <= lease._age(held) < 30
    assert objects(directory) == ["lease.0001"]


def test_one_of_two_drivers_that_find_a_stale_lease_gets_it(
    directory: UPath, take: Callable[[str], Lease], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    take("first")
    create = module.create

    def after_another(path: UPath, content: bytes) -> bool:
        create(path, content.replace(b"third", b"second"))
        return create(path, content)

    monkeypatch.setattr(module, "create", after_another)
    with pytest.raises(SearchError, match=r"^search of second in"):
        take("third")


def test_a_lease_that_is_released_while_another_driver_waits_is_free(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    first = take("first")
    clock.happens = first.release
    take("second").check()


def test_a_driver_whose_renewals_fail_for_a_while_keeps_its_lease(
    directory: UPath, take: Callable[[str], Lease], clock: Clock
) -> None:
    lease = take("first")
    clock.now += 10 * STALE_SECONDS  # no other driver has tried
    lease.check()
    assert json.loads((directory / "lease.0001").read_text())["renewals"] == 1


def test_an_unavailable_store_does_not_hide_the_error_that_ended_a_search(
    directory: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: object) -> None:
        raise ConnectionError("no store")

    with pytest.raises(SearchError, match="the reason"), only_driver(directory, "s1"):
        monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.05)
        monkeypatch.setattr(type(directory.fs._filesystem), "pipe_file", gone)
        raise SearchError("the reason")
    assert objects(directory) == ["lease.0001"]


def test_the_lock_of_an_object_store_is_a_lease(directory: UPath) -> None:
    with only_driver(directory, "s1") as still_ours:
        still_ours()
        assert json.loads((directory / "lease.0001").read_text())["search"] == "s1"
    assert objects(directory) == ["lease.0001"]
