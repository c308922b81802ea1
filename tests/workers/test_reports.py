"""A worker's reports without Ray: each checkpoint is stored first, reports keep their order, the right ones stay."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train

from tuner.training.checkpoint import folder_name
from tuner.training.ranks import ALONE
from tuner.workers.reports import Reporter, kept

GAPS = (0.1, 0.5, 0.2, 0.3, 0.4)
Told = list[tuple[dict[str, Any], list[str]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The trial's folder in the storage, as Train's controller makes it."""
    (tmp_path / "trials" / "trial-1").mkdir(parents=True)
    return tmp_path / "trials" / "trial-1"


@pytest.fixture
def told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """The reports that Train received, each with the checkpoints in the trial's folder at that moment."""
    received: Told = []

    def report(metrics: dict[str, Any]) -> None:
        received.append((metrics, sorted(path.name for path in folder.glob("epoch-*"))))

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return received


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
    folder: Path, told: Told
) -> None:
    reporter = Reporter(folder, stores=True)
    report_all(reporter)
    assert [metrics["epoch"] for metrics, _ in told] == [1, 2, 3, 4, 5]
    names = [[int(name[-4:]) for name in stored] for _, stored in told]
    assert names == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
    found = [(path.name, (path / "state").read_text()) for path in reporter.checkpoints(ALONE)]
    assert found == [(folder_name(epoch), f"of epoch {epoch}") for epoch in (5, 4, 2)]


def test_a_checkpoint_written_again_replaces_a_damaged_one(folder: Path, told: Told) -> None:
    reporter = Reporter(folder, stores=True)
    report_all(reporter)
    reporter({"epoch": 5}, state("anew"), [folder_name(5)])
    reporter.wait()
    assert [(path / "state").read_text() for path in reporter.checkpoints(ALONE)] == ["anew"]


def test_other_ranks_report_and_store_nothing(folder: Path, told: Told) -> None:
    report_all(Reporter(folder, stores=False))
    assert len(told) == 5 and not any(stored for _, stored in told)


def test_an_error_that_prevents_a_report_is_raised(folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(metrics: dict[str, Any]) -> None:
        raise RuntimeError("the controller is gone")

    monkeypatch.setattr(ray.train, "report", refuse)
    reporter = Reporter(folder, stores=True)
    reporter({"epoch": 1}, None)
    with pytest.raises(RuntimeError, match="the controller is gone"):
        reporter.wait()


def test_a_full_storage_is_a_fatal_error(folder: Path, told: Told) -> None:
    """On a file system that is really full."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        reporter = Reporter(folder, stores=True)
        reporter({"epoch": 1}, state("x" * 100_000), ["epoch-0001"])
        reporter.wait()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    ((metrics, _),) = told
    assert metrics.keys() == {"fatal"}
    assert metrics["fatal"].startswith(f"{folder}/epoch-0001: cannot be written, the disk is full")


def test_a_machine_that_does_not_share_the_storage_writes_nothing(folder: Path, told: Told) -> None:
    folder.rmdir()
    reporter = Reporter(folder, stores=True)
    reporter({"epoch": 1}, state("of epoch 1"), ["epoch-0001"])
    with pytest.raises(FileNotFoundError):
        reporter.wait()
    assert not folder.exists() and not told
