"""Processes of real searches are killed. The docstring of a test says what may be lost; the test checks the rest.

Each test makes a row of docs/faults.md, which `python benchmarks/faults.py` writes.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest

from tests.support.inject import happened, inject, pace
from tests.support.rays import long_lived_ray
from tests.support.searches import (
    OF_A_TRIAL,
    assert_equals_the_uninterrupted,
    assert_recovered,
    cost_of_fault,
    folder_of,
    processes_of,
    runs_of,
    search_of,
)
from tests.support.workplace import Workplace
from tuner.storage import searches

pytestmark = pytest.mark.fault
CI = pytest.mark.fault_ci

EPOCHS, TRIALS = 24, 2
SEARCH = ("--trials", str(TRIALS), "--set", f"training.epochs={EPOCHS}")
FaultRow = Callable[..., None]  # of the fixture fault_row


@pytest.fixture(autouse=True)
def paced(workplace: Workplace) -> None:
    pace(workplace)


def begin(place: Workplace, *arguments: str) -> "subprocess.Popen[str]":
    """Start a search and wait until trial 0 has trained five epochs."""
    driver = place.start(*SEARCH, *arguments)
    place.wait_for_line(driver, "trial 000  epoch 5/")
    return driver


def resume(place: Workplace, *arguments: str) -> str:
    """Resume the search and wait for its end; returns its output."""
    code, printed = place.run("--resume", *arguments, output="resumed.txt")
    assert code == 0, printed
    return printed


def kill(place: Workplace, name: str) -> float:
    """Kill (-9) the only process with this title; returns the time."""
    (process,) = processes_of(place, name)
    process.kill()
    return time.time()


def check(place: Workplace, epochs: int = EPOCHS) -> None:
    """Check that nothing is lost, no process is left, and trial 0 has the numbers of an uninterrupted one."""
    assert_recovered(place, TRIALS, epochs)


@pytest.mark.parametrize(
    ("fault", "process"),
    [
        pytest.param("kill -9 of the Train worker", "RayTrainWorker", marks=CI),
        ("kill -9 of the slot's actor", "Slot"),
        ("kill -9 of the Train controller", "TrainController"),
    ],
)
def test_a_killed_process_of_a_trial(workplace: Workplace, fault_row: FaultRow, fault: str, process: str) -> None:
    """The epochs since the last stored checkpoint. The search continues without help."""
    driver = begin(workplace)
    at = kill(workplace, process)
    assert driver.wait(600) == 0, workplace.printed()
    check(workplace)
    fault_row(fault, **cost_of_fault(workplace, 0, at))


@pytest.mark.parametrize(
    ("fault", "process"),
    [
        ("kill -9 of the Train worker in its third trial", "RayTrainWorker"),
        ("kill -9 of the slot's actor in its third trial", "Slot"),
        pytest.param("kill -9 of the Train controller in its slot's third trial", "TrainController", marks=CI),
    ],
)
def test_a_killed_process_in_its_third_trial(
    workplace: Workplace, fault_row: FaultRow, fault: str, process: str
) -> None:
    """The epochs since the last stored checkpoint. The finished trials of the process are not touched."""
    driver = workplace.start("--trials", "3", *SEARCH[2:])
    workplace.wait_for_line(driver, "trial 000  epoch 1/")
    before = {found.pid for name in OF_A_TRIAL for found in processes_of(workplace, name)}
    workplace.wait_for_line(driver, "trial 002  epoch 5/")
    assert {found.pid for name in OF_A_TRIAL for found in processes_of(workplace, name)} == before
    at = kill(workplace, process)
    assert driver.wait(600) == 0, workplace.printed()
    assert_recovered(workplace, 3, EPOCHS, trials=(2,))
    fault_row(fault, **cost_of_fault(workplace, 2, at))


def test_a_slot_that_is_killed_while_it_takes_a_trial(workplace: Workplace, fault_row: FaultRow) -> None:
    """Nothing: another slot takes the trial. Tune notices the loss twice here, and would fail the trial for good."""
    inject(workplace, "def take(trial): trial == 1 and once() and os.kill(os.getpid(), signal.SIGKILL)")
    code, printed = workplace.run(*SEARCH, timeout=600)
    assert code == 0, printed
    assert happened(workplace)
    assert "trial 001  its slot was lost" in printed
    check(workplace)
    fault_row("kill -9 of the slot's actor while it takes a trial", lost_epochs=0, recovery_seconds=None)


@pytest.mark.fault_ci
def test_a_killed_driver(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. Tune's own snapshot is deleted too, and is not needed."""
    driver = begin(workplace)
    driver.kill()
    at = time.time()
    driver.wait()
    assert search_of(workplace).ended is None
    shutil.rmtree(folder_of(workplace) / searches.RAY)
    resume(workplace)
    check(workplace)
    fault_row("kill -9 of the driver, its private Ray with it", **cost_of_fault(workplace, 0, at))


def test_a_killed_driver_of_a_long_lived_ray(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. The Ray keeps running."""
    with long_lived_ray(workplace) as ray:
        driver = begin(workplace, "--address", ray.address)
        driver.kill()
        at = time.time()
        driver.wait()
        resume(workplace, "--address", ray.address)
        ray.assert_nothing_is_left()
        check(workplace)
        fault_row("kill -9 of the driver, on a long-lived Ray", **cost_of_fault(workplace, 0, at))


def test_a_snapshot_behind_the_journal(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. Tune's own snapshot is minutes old, and is not read."""
    driver = begin(workplace)
    snapshot = folder_of(workplace) / searches.RAY
    shutil.copytree(snapshot, workplace.folder / "before")
    workplace.wait_for_line(driver, "trial 001  epoch 5/")
    driver.kill()
    at = time.time()
    driver.wait()
    shutil.rmtree(snapshot)
    (workplace.folder / "before").rename(snapshot)
    printed = resume(workplace)
    assert "trial 000  epoch" not in printed  # a finished trial is not run again
    check(workplace)
    assert_equals_the_uninterrupted(workplace, number=1)
    fault_row("a snapshot of Tune's behind the journal, after kill -9", **cost_of_fault(workplace, 1, at))


@pytest.mark.fault_ci
def test_the_raylet_of_a_worker_node_is_killed(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. The trial moves to another node."""
    with long_lived_ray(workplace, cpus=0) as ray:
        raylets = {raylet.pid: raylet for raylet in (ray.add_node(), ray.add_node())}
        driver = begin(workplace, "--address", ray.address)
        (worker,) = processes_of(workplace, "RayTrainWorker")
        raylets[worker.ppid()].kill()
        at = time.time()
        assert driver.wait(600) == 0, workplace.printed()
        ray.assert_nothing_is_left()
        check(workplace)
        fault_row("kill -9 of the raylet of a trial's node", **cost_of_fault(workplace, 0, at))


def test_the_node_of_a_whole_slot_is_killed(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. The slot starts on another node and continues its trial."""
    with long_lived_ray(workplace, cpus=0, memory=1) as ray:  # a slot's actor holds no CPU, but some memory
        first = ray.add_node()
        driver = begin(workplace, "--address", ray.address, "--set", "training.epochs=200")
        assert {found.ppid() for name in OF_A_TRIAL for found in processes_of(workplace, name)} == {first.pid}
        second = ray.add_node()
        first.kill()
        at = time.time()
        workplace.wait_for_line(driver, "trial 000  resumed")
        assert {found.ppid() for name in OF_A_TRIAL for found in processes_of(workplace, name)} == {second.pid}
        assert driver.wait(600) == 0, workplace.printed()
        ray.assert_nothing_is_left()
        check(workplace, epochs=200)
        fault_row("kill -9 of the raylet of a whole slot's node", **cost_of_fault(workplace, 0, at))


def test_the_whole_head_is_killed(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last stored checkpoint. The driver ends and says why; a new head resumes."""
    with long_lived_ray(workplace) as ray:
        driver = begin(workplace, "--address", ray.address)
        ray.kill()
        at = time.time()
        assert driver.wait(300) == 1
        assert re.search(rf"no Ray answers at \S+:{ray.port} any more", workplace.printed())
        assert "python tune.py tiny --resume" in workplace.printed()
        assert {status for _, status, _ in runs_of(workplace)} == {"KILLED"}
    with long_lived_ray(workplace) as ray:
        resume(workplace, "--address", ray.address)
        ray.assert_nothing_is_left()
        check(workplace)
        fault_row("kill -9 of the whole head, then a new one", **cost_of_fault(workplace, 0, at))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_signal_to_the_driver(workplace: Workplace, fault_row: FaultRow, number: signal.Signals, times: int) -> None:
    """The epochs since the last stored checkpoint. The driver prints how to resume and leaves no process."""
    driver = begin(workplace)
    own = psutil.Process(driver.pid).children(recursive=True)
    at = time.time()
    for _ in range(times):
        # As in a terminal, Ctrl-C reaches the private Ray as well.
        (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
        time.sleep(0.5)
    assert driver.wait(120) == 130, workplace.printed()
    assert "python tune.py tiny --resume" in workplace.printed()
    _, alive = psutil.wait_procs(own, timeout=30)
    assert not alive, alive
    assert {status for _, status, _ in runs_of(workplace)} == {"KILLED"}
    resume(workplace)
    check(workplace)
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    fault_row(f"{name}{' twice' if times == 2 else ''}, then --resume", **cost_of_fault(workplace, 0, at))


@pytest.mark.fault_ci
def test_two_searches_on_the_same_storage(workplace: Workplace, fault_row: FaultRow) -> None:
    """Nothing. The second search is refused and names the process of the first one, which continues."""
    driver = begin(workplace, "--set", "training.epochs=200")
    for arguments in ((), ("--resume",)):
        code, printed = workplace.run(*arguments, output="second.txt")
        assert code == 2, printed
        *_, sentence = printed.splitlines()
        assert f"search {folder_of(workplace).name} is being run by process {driver.pid} on " in sentence
        assert "wait until it ends or stop it, or choose another --storage" in sentence
    assert driver.wait(600) == 0, workplace.printed()
    check(workplace, epochs=200)
    fault_row("two searches started on the same storage", lost_epochs=0, recovery_seconds=None)
