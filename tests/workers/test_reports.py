"""A worker's reports without Ray: each checkpoint is stored first, reports keep their order, the right ones stay."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data import retry
from tuner.training.checkpoint import folder_name
from tuner.training.ranks import ALONE
from tuner.workers import reports
from tuner.workers.reports import Reporter, checkpoints, kept

GAPS = (0.1, 0.5, 0.2, 0.3, 0.4)
Told = list[tuple[dict[str, Any], list[str]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The trial's folder in the storage; the driver has made the one around it."""
    (tmp_path / "trials").mkdir()
    return tmp_path / "trials" / "trial-1"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def told() -> Told:
    """The reports that Tune received, each with the checkpoints in the trial's folder at that moment."""
    return []


@pytest.fixture
def reporter(folder: Path, scratch: Path, told: Told) -> Reporter:
    def send(metrics: dict[str, Any]) -> bool:
        told.append((metrics, sorted(path.name for path in folder.glob("epoch-*"))))
        return True

    return Reporter(folder, scratch, send)


def state(text: str) -> Callable[[Path], None]:
    def save(directory: Path) -> None:
        directory.mkdir()
        (directory / "state").write_text(text)

    return save


def report_all(reporter: Reporter) -> None:
    history = [{"epoch": epoch, "gap": gap} for epoch, gap in enumerate(GAPS, start=1)]
    for epoch in range(1, len(GAPS) + 1):
        reporter({"epoch": epoch}, state(f"of epoch {epoch}"), kept(history[:epoch]))
    reporter.wait()


def test_an_epoch_is_reported_when_its_checkpoint_is_stored_and_the_best_and_the_last_two_stay(
    folder: Path, scratch: Path, told: Told, reporter: Reporter
) -> None:
    report_all(reporter)
    assert [metrics["epoch"] for metrics, _ in told] == [1, 2, 3, 4, 5]
    names = [[int(name[-4:]) for name in stored] for _, stored in told]
    assert names == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4, 5]]
    found = [(path.name, (path / "state").read_text()) for path in checkpoints(folder, scratch, ALONE)]
    assert found == [(folder_name(epoch), f"of epoch {epoch}") for epoch in (5, 4, 2)]


def test_a_checkpoint_written_again_replaces_a_damaged_one(folder: Path, scratch: Path, reporter: Reporter) -> None:
    report_all(reporter)
    reporter({"epoch": 5}, state("anew"), [folder_name(5)])
    reporter.wait()
    assert [(path / "state").read_text() for path in checkpoints(folder, scratch, ALONE)] == ["anew"]


def test_of_a_stopped_trial_the_checkpoints_of_known_epochs_stay(folder: Path, scratch: Path) -> None:
    """The last epoch is the best one, but Tune does not want it: the best of the others must not be removed for it."""
    reporter = Reporter(folder, scratch, lambda metrics: metrics["epoch"] < 5)
    history = [{"epoch": epoch, "gap": gap} for epoch, gap in enumerate((0.5, 0.1, 0.2, 0.3, 0.9), start=1)]
    for epoch in range(1, 6):
        reporter({"epoch": epoch}, state("of an epoch"), kept(history[:epoch]))
    reporter.wait()
    assert sorted(path.name for path in folder.iterdir()) == [folder_name(epoch) for epoch in (1, 3, 4)]


def test_an_error_that_prevents_a_report_is_raised(folder: Path, scratch: Path) -> None:
    def refuse(metrics: dict[str, Any]) -> bool:
        raise RuntimeError("the slot is gone")

    reporter = Reporter(folder, scratch, refuse)
    reporter({"epoch": 1}, None)
    with pytest.raises(RuntimeError, match="the slot is gone"):
        reporter.wait()


def test_a_full_storage_is_a_fatal_error(folder: Path, told: Told, reporter: Reporter) -> None:
    """On a file system that is really full."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        reporter({"epoch": 1}, state("x" * 100_000), ["epoch-0001"])
        reporter.wait()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    ((metrics, _),) = told
    assert metrics.keys() == {"fatal"}
    assert metrics["fatal"].startswith(f"{folder}/epoch-0001: cannot be written, the disk is full")


def test_a_machine_that_does_not_share_the_storage_writes_nothing(folder: Path, told: Told, reporter: Reporter) -> None:
    folder.parent.rmdir()
    reporter({"epoch": 1}, state("of epoch 1"), ["epoch-0001"])
    with pytest.raises(FileNotFoundError):
        reporter.wait()
    assert not folder.exists() and not told


def failing_copies(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Let every so manieth copy of a file into the storage fail."""
    copied, copyfile = [], shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) % every == 0:
            raise OSError(errno.EIO, "Input/output error", str(target))
        copyfile(source, target)

    monkeypatch.setattr(reports.shutil, "copyfile", copy)


def test_a_storage_that_fails_for_a_moment_gets_every_checkpoint(
    folder: Path, told: Told, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    failing_copies(monkeypatch, every=2)
    report_all(reporter)
    assert [report["epoch"] for report, _ in told] == [1, 2, 3, 4, 5]
    assert (folder / folder_name(5) / "state").read_text() == "of epoch 5"


def test_a_storage_that_stays_away_is_a_fatal_error(
    folder: Path, told: Told, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends in order, and a resume goes on; no trial counts as failed."""
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.05)
    failing_copies(monkeypatch, every=1)
    reporter({"epoch": 1}, state("first"))
    reporter.wait()
    ((report, _),) = told
    assert f"{folder / folder_name(1) / 'state'}: cannot be reached: Input/output error" in report["fatal"]
