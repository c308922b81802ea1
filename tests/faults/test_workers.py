"""Trials of several workers on a real Ray: one worker is killed, or the node that it runs on.

These trials have no dropout, for which every worker draws its own numbers. So they have the numbers of one worker that
trains on whole batches, up to the order of summation.
"""

import time
from collections.abc import Callable

import pytest

from tests.support.inject import pace
from tests.support.rays import long_lived_ray
from tests.support.searches import (
    assert_recovered,
    cost_of_fault,
    processes_of,
    search_of,
)
from tests.support.workplace import Workplace

pytestmark = pytest.mark.fault

EPOCHS, TRIALS = 20, 2
SETTINGS = ("resources.cpu=1", "model.dropout=0", "training.batch_size=50", f"training.epochs={EPOCHS}")
SEARCH = ("--trials", str(TRIALS), *(word for setting in SETTINGS for word in ("--set", setting)))
FaultRow = Callable[..., None]  # of the fixture fault_row


@pytest.fixture(autouse=True)
def paced(workplace: Workplace) -> None:
    pace(workplace)


def check(place: Workplace) -> None:
    """Check that nothing is lost, no process is left, and the numbers are those of one worker."""
    assert_recovered(place, TRIALS, EPOCHS, trials=range(TRIALS), rel=1e-3)


def test_one_of_two_workers_is_killed(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. Both workers start again."""
    driver = workplace.start(*SEARCH, "--set", "resources.workers=2")
    workplace.wait_for_line(driver, "trial 000  epoch 4/")
    workers = processes_of(workplace, "RayTrainWorker")
    assert len(workers) == 2
    workers[1].kill()
    at = time.time()
    assert driver.wait(600) == 0, workplace.printed()
    assert "1 trial at a time, each with 2 workers of 1 CPU" in workplace.printed()
    check(workplace)
    fault_row("kill -9 of one of two workers of a trial", **cost_of_fault(workplace, 0, at))


def test_the_node_of_one_of_two_elastic_workers_is_killed(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. The trial continues with the worker that is left."""
    with long_lived_ray(workplace, cpus=0) as ray:
        raylets = {raylet.pid: raylet for raylet in (ray.add_node(), ray.add_node())}
        elastic = ("--set", "resources.workers={min: 1, max: 2}")
        driver = workplace.start(*SEARCH, *elastic, "--address", ray.address)
        workplace.wait_for_line(driver, "trial 000  epoch 4/")
        workers = processes_of(workplace, "RayTrainWorker")
        assert len({worker.ppid() for worker in workers}) == 2  # one on each node
        (actor,) = processes_of(workplace, "Slot")  # Train's controller runs on the same node, which is not killed
        lost = next(pid for pid in raylets if pid != actor.ppid())
        raylets[lost].kill()
        at = time.time()
        assert driver.wait(600) == 0, workplace.printed()
        assert "each with 1 to 2 workers of 1 CPU" in workplace.printed()
        ray.assert_nothing_is_left()
        check(workplace)
        assert all(trial.status == "finished" for trial in search_of(workplace).trials.values())
        fault_row("kill -9 of the raylet of one of two elastic workers", **cost_of_fault(workplace, 0, at))
