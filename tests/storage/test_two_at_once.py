"""Two drivers at once, one of which was suspended and wakes: no order of their requests lets both write one journal."""

import uuid

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from upath import UPath

from tests.support.interleaved import Schedule
from tuner.errors import SearchError
from tuner.storage import journal, lease
from tuner.storage.journal import Journal
from tuner.storage.lease import STALE_SECONDS, Lease

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
            held = Lease(directory.parent, {"name": name}, "search of {name}".format_map, lambda: schedule.now)
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
