"""Real processes of real searches are killed: a docstring says what may be lost, the test that nothing else is.

One function for each row of the fault table, which `python benchmarks/faults.py` makes.
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

from tests.support.rays import long_lived_ray
from tests.support.searches import (
    assert_equals_the_uninterrupted,
    assert_nothing_is_left,
    assert_nothing_was_lost,
    folder_of,
    processes_of,
    runs_of,
    search_of,
    toll,
)
from tests.support.workplace import Workplace

pytestmark = pytest.mark.fault

EPOCHS, TRIALS = 40, 2
SEARCH = ("--trials", str(TRIALS), "--set", f"training.epochs={EPOCHS}", "--set", "search.overlap=false")
State = Callable[..., None]  # the fixture fault_row


def begin(place: Workplace, *arguments: str) -> "subprocess.Popen[str]":
    """A search whose trial 0 is under way."""
    driver = place.start(*SEARCH, *arguments)
    place.wait_for_line(driver, "trial 000  epoch 5/")
    return driver


def resume(place: Workplace, *arguments: str) -> str:
    """Go on with it to its end; returns what that printed."""
    code, printed = place.run("--resume", *arguments, output="resumed.txt")
    assert code == 0, printed
    return printed


def kill(place: Workplace, name: str) -> float:
    """Kill -9 of the one process of a trial with that title; returns when."""
    (process,) = processes_of(place, name)
    process.kill()
    return time.time()


def check(place: Workplace) -> None:
    """All is there, nothing is left, and the trial that was hit has the numbers of one that was not."""
    assert_nothing_was_lost(place, TRIALS, EPOCHS)
    assert_nothing_is_left(place)
    assert_equals_the_uninterrupted(place, number=0)


@pytest.mark.parametrize(
    ("fault", "process"),
    [
        pytest.param("kill -9 of the Train worker", "RayTrainWorker", marks=pytest.mark.fault_ci),
        ("kill -9 of the trial's actor", "ImplicitFunc"),
        ("kill -9 of the Train controller", "TrainController"),
    ],
)
def test_a_killed_process_of_a_trial(workplace: Workplace, fault_row: State, fault: str, process: str) -> None:
    """The epochs since the last checkpoint that arrived; the search itself goes on."""
    driver = begin(workplace)
    at = kill(workplace, process)
    assert driver.wait(600) == 0, workplace.printed()
    check(workplace)
    fault_row(fault, **toll(workplace, 0, at))


@pytest.mark.fault_ci
def test_a_killed_driver(workplace: Workplace, fault_row: State) -> None:
    """The epochs since the last checkpoint that arrived; Tune's own snapshot is gone as well, and not missed."""
    driver = begin(workplace)
    driver.kill()
    at = time.time()
    driver.wait()
    assert search_of(workplace).ended is None
    shutil.rmtree(folder_of(workplace) / "tune")
    resume(workplace)
    check(workplace)
    fault_row("kill -9 of the driver, its private Ray with it", **toll(workplace, 0, at))


def test_a_killed_driver_of_a_ray_that_lives_on(workplace: Workplace, fault_row: State) -> None:
    """The epochs since the last checkpoint that arrived; the Ray is left as it was."""
    with long_lived_ray(workplace) as ray:
        driver = begin(workplace, "--address", ray.address)
        driver.kill()
        at = time.time()
        driver.wait()
        resume(workplace, "--address", ray.address)
        ray.assert_nothing_is_left()
        check(workplace)
        fault_row("kill -9 of the driver, on a Ray that lives on", **toll(workplace, 0, at))


def test_a_snapshot_behind_the_journal(workplace: Workplace, fault_row: State) -> None:
    """The epochs since the last checkpoint that arrived: Tune's snapshot of minutes ago is never read."""
    driver = begin(workplace)
    tune = folder_of(workplace) / "tune"
    shutil.copytree(tune, workplace.folder / "before")
    workplace.wait_for_line(driver, "trial 001  epoch 5/")
    driver.kill()
    at = time.time()
    driver.wait()
    shutil.rmtree(tune)
    (workplace.folder / "before").rename(tune)
    printed = resume(workplace)
    assert "trial 000  epoch" not in printed  # what had finished is not run again
    check(workplace)
    assert_equals_the_uninterrupted(workplace, number=1)
    fault_row("a snapshot of Tune's behind the journal, after kill -9", **toll(workplace, 1, at))


@pytest.mark.fault_ci
def test_the_raylet_of_a_worker_node_is_killed(workplace: Workplace, fault_row: State) -> None:
    """The epochs since the last checkpoint that arrived; the trial moves to another node."""
    with long_lived_ray(workplace, cpus=0) as ray:
        raylets = {raylet.pid: raylet for raylet in (ray.add_node(), ray.add_node())}
        driver = begin(workplace, "--address", ray.address)
        (worker,) = processes_of(workplace, "RayTrainWorker")
        raylets[worker.ppid()].kill()
        at = time.time()
        assert driver.wait(600) == 0, workplace.printed()
        ray.assert_nothing_is_left()
        check(workplace)
        fault_row("kill -9 of the raylet of a trial's node", **toll(workplace, 0, at))


def test_the_whole_head_is_killed(workplace: Workplace, fault_row: State) -> None:
    """The epochs since the last checkpoint that arrived; the driver ends and says so, a new head goes on."""
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
        fault_row("kill -9 of the whole head, then a new one", **toll(workplace, 0, at))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_signal_to_the_driver(workplace: Workplace, fault_row: State, number: signal.Signals, times: int) -> None:
    """The epochs since the last checkpoint that arrived; it says how to go on and leaves no process."""
    driver = begin(workplace)
    own = psutil.Process(driver.pid).children(recursive=True)
    at = time.time()
    for _ in range(times):
        # Ctrl-C reaches the private Ray as well, as in a terminal.
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
    fault_row(f"{name}{' twice' if times == 2 else ''}, then --resume", **toll(workplace, 0, at))


@pytest.mark.fault_ci
def test_two_searches_on_the_same_storage(workplace: Workplace, fault_row: State) -> None:
    """Nothing: the second is refused and told who the first is; the first goes on."""
    driver = begin(workplace)
    for arguments in ((), ("--resume",)):
        code, printed = workplace.run(*arguments, output="second.txt")
        assert code == 2, printed
        (sentence,) = printed.splitlines()
        assert f"search {folder_of(workplace).name} is being run by process {driver.pid} on " in sentence
        assert "wait until it ends or stop it, or choose another --storage" in sentence
    assert driver.wait(600) == 0, workplace.printed()
    check(workplace)
    fault_row("two searches started on the same storage", lost_epochs=0, recovery_seconds=None)
