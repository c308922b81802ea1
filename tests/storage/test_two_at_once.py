"""Two processes at once, one of which was suspended and wakes: drivers of one search, and writers of one folder."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from upath import UPath

from tests.support.interleaved import Schedule
from tuner.errors import SearchError, WrittenTwice
from tuner.storage import journal, lease
from tuner.storage.journal import Journal
from tuner.storage.lease import STALE_SECONDS, Lease
from tuner.storage.place import Place
from tuner.storage.stores import at

BEGIN = {"version": 1, "id": "s", "experiment": "tiny", "fingerprint": "f", "planned": 0, "tracking_uri": ""}
SUGGESTED = {"values": {}, "settings": {}, "sampler_state": {}, "study_state": {}}
DRIVERS, TRIALS = 3, 3

# A driver makes so many requests, or time passes.
steps = st.one_of(
    st.tuples(st.integers(0, DRIVERS - 1), st.sampled_from([1, 2, 3, 5, 8, 13, 40])),
    st.tuples(st.just("time"), st.sampled_from([5, 25, int(STALE_SECONDS) + 10])),
)


# A driver that has found no lease wakes when two others have taken, released and removed the number that it wants.
@example([(2, 6), (0, 60), (1, 13), (2, 60)])
# A lease that a driver cannot create, because it exists, is gone when the driver looks whose it is.
@example([(1, 3), (1, 3), (2, 8), (1, 1)])
# A renewal that was looked up in time is sent when another driver has taken over.
@example([(0, 2), (2, 40), (1, 13), (0, 5), ("time", 70), (1, 5)])
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=2, max_size=14))
def test_no_order_of_requests_lets_two_drivers_write(actions: list[tuple[int | str, int]]) -> None:
    directory = UPath(f"memory://{uuid.uuid4().hex}/search")
    found: dict[str, list[str]] = {}  # the trials that a driver found when it opened the journal
    acknowledged: list[str] = []  # the trials whose `append` has returned
    with pytest.MonkeyPatch.context() as patch:
        schedule = Schedule(patch)
        patch.setattr(lease.time, "sleep", schedule.sleep)
        patch.setattr(lease, "POLL_SECONDS", 15.0)
        patch.setattr(Lease, "_keep_renewing", lambda self: None)

        def drive(name: str) -> None:
            held = Lease(
                directory.parent, {"name": name}, lambda facts: f"search of {facts.get('name')}", lambda: schedule.now
            )
            try:
                own = Journal(directory, held.check)
                found[name] = list(own.search.trials) if own.search else []
                if own.search is None:
                    own.append("search", overrides=[], baseline=0.0, **BEGIN)
                for number in range(TRIALS):
                    own.append("suggested", number=number, id=f"{name}: {number}", **SUGGESTED)
                    acknowledged.append(f"{name}: {number}")
                    held.renew()
            finally:
                held.release()

        for number in range(DRIVERS):
            schedule.add(lambda name=f"driver {number}": drive(name))
        for who, amount in actions:
            if isinstance(who, int):
                schedule.run(who, amount)
            else:
                schedule.now += amount
        schedule.finish()
    for driver in schedule.drivers:
        assert driver.error is None or isinstance(driver.error, SearchError), driver.error
    written = list(journal.read(directory).trials)
    assert set(acknowledged) <= set(written), "a line is lost that a driver took for stored"
    for name in {trial.partition(":")[0] for trial in written}:
        own = [position for position, trial in enumerate(written) if trial.startswith(name)]
        assert written[: own[0]] == found[name], f"another driver has written since {name} opened the journal"
        assert own == list(range(own[0], own[-1] + 1)), f"another driver has written between two lines of {name}"


def publish(folder: Place, text: str) -> None:
    with at(folder).publish(first="first", last="last") as staging:
        for name in ("first", "middle", "last"):
            (staging / name).write_text(text)


def test_a_folder_that_two_exports_replace_at_once_is_one_of_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins and ends when the first one has moved the old folder away."""
    folder, rename = tmp_path / "model", Path.rename
    publish(folder, "old")
    others = ["second", "third"]

    def renamed(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path == folder and others:
            publish(folder, others.pop())
        return moved

    monkeypatch.setattr(Path, "rename", renamed)
    publish(folder, "first")
    assert others == []
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("first", "middle", "last"), "first"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_into_a_bucket_that_wakes_after_another_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, put_file = UPath(f"memory://{uuid.uuid4().hex}/model"), MemoryFileSystem.put_file
    others = ["second"]

    def put(store: MemoryFileSystem, source: str, target: str, **options: Any) -> None:
        put_file(store, source, target, **options)
        if others:
            publish(folder, others.pop())

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    with pytest.raises(WrittenTwice, match=r"^memory://.*model: another process has written it at the same time"):
        publish(folder, "first")
    publish(folder, "again")
    assert {path.read_text() for path in folder.iterdir()} == {"again"}
