"""A worker's reports through Ray's own storage, minus Ray: stored first, told in order, the right checkpoints kept."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2._internal.execution.storage import StorageContext

from tuner.training.ranks import ALONE
from tuner.workers.reports import Reporter, checkpoint_name, kept

GAPS = (0.1, 0.5, 0.2, 0.3, 0.4)
Told = list[tuple[dict[str, Any], list[str]]]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Train heard, and what was in the trial's folder by then."""
    heard: Told = []
    (tmp_path / "trials").mkdir()
    storage = StorageContext(storage_path=str(tmp_path / "trials"), experiment_dir_name="trial-1")

    def report(metrics: dict[str, Any]) -> None:
        heard.append((metrics, sorted(path.name for path in (tmp_path / "trials" / "trial-1").glob("epoch-*"))))

    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: storage))
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return heard


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


def test_an_epoch_is_told_when_its_checkpoint_is_stored_and_the_best_and_the_last_two_stay(told: Told) -> None:
    reporter = Reporter(stores=True)
    report_all(reporter)
    assert [metrics["epoch"] for metrics, _ in told] == [1, 2, 3, 4, 5]
    names = [[int(name[-4:]) for name in stored] for _, stored in told]
    assert names == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
    found = [(path.name, (path / "state").read_text()) for path in reporter.checkpoints(ALONE)]
    assert found == [(checkpoint_name(epoch), f"of epoch {epoch}") for epoch in (5, 4, 2)]


def test_a_checkpoint_written_again_replaces_a_damaged_one(told: Told) -> None:
    reporter = Reporter(stores=True)
    report_all(reporter)
    reporter({"epoch": 5}, state("anew"), [checkpoint_name(5)])
    reporter.wait()
    assert [(path / "state").read_text() for path in reporter.checkpoints(ALONE)] == ["anew"]


def test_other_ranks_tell_and_store_nothing(told: Told) -> None:
    report_all(Reporter(stores=False))
    assert len(told) == 5 and not any(stored for _, stored in told)


def test_what_keeps_a_report_back_is_raised(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(metrics: dict[str, Any]) -> None:
        raise RuntimeError("the controller is gone")

    monkeypatch.setattr(ray.train, "report", refuse)
    reporter = Reporter(stores=True)
    reporter({"epoch": 1}, None)
    with pytest.raises(RuntimeError, match="the controller is gone"):
        reporter.wait()


def test_a_full_storage_is_an_obstacle(told: Told, tmp_path: Path) -> None:
    """On a real one."""
    folder = tmp_path / "trials" / "trial-1"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        (folder / ".validate_storage_marker").touch()
        reporter = Reporter(stores=True)
        reporter({"epoch": 1}, state("x" * 100_000), ["epoch-0001"])
        reporter.wait()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    ((metrics, _),) = told
    assert metrics.keys() == {"obstacle"} and "there is no room left on its disk" in metrics["obstacle"]
