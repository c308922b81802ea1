"""Faults of a trial, its checkpoints, its data and its disks, with real processes and file systems.

The docstring of a test says what may be lost; every search has the planned trials in the end. Each test makes a row of
docs/faults.md, which `python benchmarks/faults.py` writes.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.sample import write_splits
from tests.support.inject import happened, inject, pace
from tests.support.searches import (
    assert_equals_the_uninterrupted,
    assert_no_process_is_left,
    assert_nothing_is_left,
    assert_nothing_was_lost,
    assert_recovered,
    cost_of_fault,
    processes_of,
    runs_of,
    search_of,
)
from tests.support.workplace import PROJECT, Workplace, wait_for

pytestmark = pytest.mark.fault

FaultRow = Callable[..., None]  # of the fixture fault_row


def checkpoints(place: Workplace) -> list[Path]:
    """Return the checkpoints of all trials, oldest first."""
    return sorted(place.folder.glob("storage/tiny/*/trials/*/epoch-*"))


Damage = Callable[[bytes], bytes]


def tags_of(place: Workplace, number: int) -> dict[str, str]:
    (tags,) = (tags for tags, _, _ in runs_of(place) if tags.get("trial_number") == str(number))
    return tags


@pytest.mark.fault_ci
def test_a_damaged_checkpoint(workplace: Workplace, fault_row: FaultRow) -> None:
    """Two epochs: the trial resumes from the checkpoint before the damaged one."""
    pace(workplace)
    settings = ("--set", "model.hidden=12", "--set", "training.epochs=40", "--trials", "1")
    damages: dict[str, Damage] = {
        "model.safetensors": lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:]
    }
    damages["training.pt"] = lambda content: content[:-100]
    arguments, at = settings, []
    for number, (name, damage) in enumerate(damages.items()):
        output = f"output{number}.txt"
        driver = workplace.start(*arguments, output=output)
        workplace.wait_for_line(driver, f"trial 000  epoch {4 + 8 * number}/", output)
        driver.kill()
        driver.wait()
        assert_no_process_is_left(workplace)  # a worker may write for a moment after its driver was killed
        before, last = checkpoints(workplace)[-2:]
        (last / name).write_bytes(damage((last / name).read_bytes()))
        at.append(time.time())
        arguments = ("--resume",)
    code, printed = workplace.run("--resume", output="output2.txt", timeout=600)
    assert code == 0, printed
    note = f"trial 000  {last / name}: damaged"
    assert note in printed and f"resumed after epoch {int(before.name[-4:])}" in printed
    assert "model.safetensors: damaged" in workplace.printed("output1.txt")
    assert_nothing_was_lost(workplace, planned=1, epochs=40)
    assert_equals_the_uninterrupted(workplace, number=0)
    assert f"{last / name}: damaged" in tags_of(workplace, 0)["note"]
    assert_nothing_is_left(workplace)
    for fault, when in zip(("a flipped byte in", "an end missing from"), at, strict=True):
        fault_row(f"{fault} the last checkpoint, after kill -9", **cost_of_fault(workplace, 0, when))


def test_a_trial_that_hangs(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epoch that hung. A trial that hangs every time fails with an error that says so."""
    inject(
        workplace,
        """
        def fault(trial, epoch):
            if (trial == 0 and epoch == 3 and once()) or (trial == 1 and epoch == 2):
                time.sleep(3600)
        """,
    )
    code, printed = workplace.run(
        "--set", "search.epoch_timeout=20s", "--set", "search.failures.per_trial=1", timeout=600
    )
    assert code == 0, printed
    search = search_of(workplace)
    assert [trial.status for trial in search.trials.values()] == ["finished", "failed", "finished"]
    error = "EpochTimeout: epoch 2 took longer than 20 s (search.epoch_timeout); 2 attempts (search.failures.per_trial)"
    assert f"trial 001  failed: {error}" in printed
    assert tags_of(workplace, 1)["error"] == error
    assert_equals_the_uninterrupted(workplace, number=0)
    assert_nothing_is_left(workplace)
    fault_row("an epoch that hangs (a limit of 20 s)", **cost_of_fault(workplace, 0, happened(workplace)))


def test_an_error_of_a_gpu(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epoch with the error. The worker's process, which cannot use the GPU any more, is replaced."""
    inject(
        workplace,
        """
        def fault(trial, epoch):
            if trial == 1 and epoch == 3 and once():
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        """,
    )
    code, printed = workplace.run()
    assert code == 0, printed
    reason = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert f"trial 001  {reason}; it resumes from its last checkpoint" in printed
    assert_recovered(workplace, planned=3, epochs=12, trials=(1,))
    fault_row("an error of a GPU", **cost_of_fault(workplace, 1, happened(workplace)))


def test_a_worker_killed_while_it_saves_a_checkpoint(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epoch that was being saved. The incomplete checkpoint is removed."""
    inject(
        workplace,
        """
        def fault(trial, epoch):
            if trial == 0 and epoch == 3 and once():
                import torch
                torch.save = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    code, printed = workplace.run("--trials", "2")
    assert code == 0, printed
    assert_recovered(workplace, planned=2, epochs=12)
    fault_row("kill -9 of a worker that saves a checkpoint", **cost_of_fault(workplace, 0, happened(workplace)))


def test_a_trial_that_loses_workers_and_slots(workplace: Workplace, fault_row: FaultRow) -> None:
    """The trial: losses of workers and of slots count together (`search.failures.per_trial`)."""
    inject(
        workplace,
        """
        def fault(trial, epoch):
            if trial == 0 and epoch == 3:
                open(os.path.join(FOLDER, f"attempt-{os.getpid()}"), "x").close()
                time.sleep(3600)
        """,
    )
    driver = workplace.start("--trials", "2", "--set", "search.failures.per_trial=2")
    attempts = workplace.folder / "hook"
    for number, name in enumerate(("RayTrainWorker", "Slot", "RayTrainWorker"), start=1):
        wait_for(lambda number=number: len(list(attempts.glob("attempt-*"))) == number or driver.poll() is not None)
        (process,) = processes_of(workplace, name)
        process.kill()
    assert driver.wait(600) == 0, workplace.printed()
    first, second = search_of(workplace).trials.values()
    assert first.status == "failed" and list(first.reports) == [1, 2] and second.status == "finished"
    assert (first.error or "").endswith("; 3 attempts (search.failures.per_trial)")
    assert_nothing_is_left(workplace)
    fault_row("kill -9 of a trial's worker, then its slot, then its worker", lost_epochs=0, recovery_seconds=None)


def test_a_trial_that_runs_out_of_memory(workplace: Workplace, fault_row: FaultRow) -> None:
    """The trial, which would run out of memory again. One that the kernel kills is tried again before it fails."""
    inject(
        workplace,
        """
        def fault(trial, epoch):
            if trial == 0 and epoch == 2:
                import torch
                torch.empty(10**12)
            if trial == 1 and epoch == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    settings = ("--set", "training.epochs=4", "--set", "search.failures.per_trial=1")
    code, printed = workplace.run(*settings, timeout=600)
    assert code == 0, printed
    first, second, third = search_of(workplace).trials.values()
    assert first.status == "failed" and (first.error or "").startswith("TrialOutOfMemory: not enough memory on ")
    assert "resumed" not in printed.partition("trial 000  failed")[0]  # it was not tried again
    assert second.status == "failed" and set(second.reports) <= {1, 2}  # reports of a killed worker may be lost with it
    assert "its worker crashed or was killed, as the kernel does when memory runs out" in (second.error or "")
    assert "2 attempts" in (second.error or "")
    assert third.status == "finished"
    assert_nothing_is_left(workplace)
    fault_row("a trial that runs out of memory", lost_epochs=0, recovery_seconds=None)


def test_a_trial_that_diverges(workplace: Workplace, fault_row: FaultRow) -> None:
    """The trial, which would diverge again. It fails and has no score; the search continues."""
    file = workplace.folder / "experiments.yaml"
    rates = "{choice: [1.0e-3, 2.0e-3, 3.0e-3, 1.0e+39], default: 1.0e+39}"
    file.write_text(file.read_text().replace("{loguniform: [1.0e-3, 1.0e-2]}", rates))
    code, printed = workplace.run("--set", "training.epochs=3")
    assert code == 0, printed
    (failed, *_) = search_of(workplace).failed
    assert failed.number == 0 and "the loss is not finite" in (failed.error or "")
    statuses = {tags["trial_number"]: status for tags, status, _ in runs_of(workplace) if "trial_id" in tags}
    assert statuses["0"] == "FAILED"
    assert_nothing_is_left(workplace)
    fault_row("a trial that diverges", lost_epochs=0, recovery_seconds=None)


# Every process imports it: it shifts the time of day by the seconds in the file `jumped`, once there is one.
CLOCK = """import os, time
real, folder = time.time, os.path.dirname(__file__)

def jumping():
    try:
        with open(os.path.join(folder, "jumped")) as file:
            return real() + float(file.read() or 0)
    except FileNotFoundError:
        return real()

time.time = jumping
"""


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_clock_that_jumps(workplace: Workplace, fault_row: FaultRow, hours: int) -> None:
    """Nothing. Durations come from a clock that does not jump, and the newest file is found by its name."""
    hook = workplace.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(CLOCK)
    workplace.variables["PYTHONPATH"] = f"{hook}:{PROJECT}"
    limits = ("--set", "search.epoch_timeout=10m", "--set", "search.time_budget=1h")
    driver = workplace.start("--set", "training.epochs=40", "--trials", "2", *limits)
    workplace.wait_for_line(driver, "trial 000  epoch 5/")
    (hook / "pending").write_text(str(hours * 3600))
    (hook / "pending").rename(hook / "jumped")
    assert driver.wait(600) == 0, workplace.printed()
    assert_recovered(workplace, planned=2, epochs=40)
    by = "back" if hours < 0 else "forward"
    fault_row(f"the clock jumps {by} by {abs(hours)} hours", lost_epochs=0, recovery_seconds=None)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a new file system of `size` on `folder`."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file that leaves no free byte on the disk; returns its path."""
    with (folder / "filling").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
            file.flush()
    return folder / "filling"


def without_sample(place: Workplace) -> list[Path]:
    """Write the shards now, and remove `sample` from the yaml: the search cannot write them again.

    Returns:
        The shards of the training split.
    """
    file = place.folder / "experiments.yaml"
    splits, features = {"train": 300, "validate": 100}, {"mean_rgb": 32, "mean_audio": 8}
    write_splits(place.folder / "shards", num_videos=splits, num_shards=2, num_classes=20, features=features, seed=1)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "sample:" not in line))
    return sorted((place.folder / "shards").glob("train*.tfrecord"))


def test_a_shard_that_vanishes(workplace: Workplace, fault_row: FaultRow) -> None:
    """Nothing: the search has decoded it. Where that copy is lost too, the search stops until the shard is back."""
    first, *_ = without_sample(workplace)
    workplace.variables["TUNER_CACHE"] = str(workplace.folder / "cache")
    pace(workplace)
    driver = workplace.start("--set", "search.trials_per_worker=2")
    workplace.wait_for_line(driver, "trial 000  epoch 2/")
    first.rename(workplace.folder / "away")
    workplace.wait_for_line(driver, "trial 001  epoch 2/")
    shutil.rmtree(workplace.folder / "cache")  # as on a node that has just joined the cluster: a new worker opens it
    assert driver.wait(600) == 2, workplace.printed()
    printed = workplace.printed()
    assert "the data has changed since the search began" in printed and f"missing: {first}" in printed
    assert "2 of 3 trials are finished" in printed and "--resume" in printed and not search_of(workplace).failed

    (workplace.folder / "away").rename(first)
    code, printed = workplace.run("--resume", output="resumed.txt", timeout=600)
    assert code == 0, printed
    assert_recovered(workplace, planned=3, epochs=12, trials=())
    fault_row("a shard that vanishes", lost_epochs=0, recovery_seconds=None)


def test_a_full_disk_under_the_storage(workplace: Workplace, fault_row: FaultRow) -> None:
    """The epochs since the last checkpoint. The search stops in order, and is resumed when there is room."""
    with small_disk(workplace.folder / "storage", "4m") as storage:
        pace(workplace)
        driver = workplace.start("--set", "training.epochs=60", "--trials", "2")
        workplace.wait_for_line(driver, "trial 000  epoch 5/")
        filling, at = fill(storage), time.time()
        assert driver.wait(600) == 2, workplace.printed()
        printed = workplace.printed()
        assert "No space left on device" in printed and "--resume" in printed and "Traceback" not in printed
        assert not search_of(workplace).failed
        code, printed = workplace.run("--resume", output="still.txt")
        assert code == 2 and "Traceback" not in printed, printed

        filling.unlink()
        code, printed = workplace.run("--resume", output="resumed.txt", timeout=600)
        assert code == 0, printed
        assert_recovered(workplace, planned=2, epochs=60)
        fault_row("a full disk under the storage, then room again", **cost_of_fault(workplace, 0, at))


@pytest.mark.fault_ci
def test_a_full_disk_under_the_cache(workplace: Workplace, fault_row: FaultRow) -> None:
    """Nothing: the search has not begun. The incomplete cache is removed."""
    with small_disk(workplace.folder / "cache", "1200k") as cache:
        workplace.variables["TUNER_CACHE"] = str(cache)
        filling = fill(cache)
        code, printed = workplace.run("--trials", "1")
        assert code == 2 and "free space there or give another folder for the cache" in printed, printed
        assert {path.name for path in cache.iterdir() if path.is_dir()} == set()
        filling.unlink()
        code, printed = workplace.run("--trials", "1", output="again.txt", timeout=600)
        assert code == 0, printed
        assert_recovered(workplace, planned=1, epochs=12, trials=())
        fault_row("a full disk under the cache", lost_epochs=0, recovery_seconds=None)
