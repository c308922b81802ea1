"""What a worker does in a trial, called as Ray calls it, without Ray."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from ray.exceptions import RayActorError

from models.optim import OptimizerConfig
from tests.support.finished import FAST, FinishedSearch
from tests.support.workplace import PROJECT
from tuner.cluster.resources import Resources
from tuner.config.experiment import load
from tuner.errors import TrialOutOfMemory
from tuner.training import checkpoint
from tuner.training.checkpoint import folder_name
from tuner.training.data_config import DataConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.steps import needs
from tuner.workers import trial
from tuner.workers.messages import epochs_of
from tuner.workers.reports import kept
from tuner.workers.slot import slot
from tuner.workers.trial import Job, again

CPU = torch.device("cpu")
Report = tuple[dict[str, Any], Callable[[Path], None] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given(Job):
    """A job, and the data on which it trains here."""

    data: DataConfig
    fingerprint: str

    def open(self) -> Dataset:
        return open_dataset(self.data, fingerprint=self.fingerprint)


@pytest.fixture
def job(finished_search: FinishedSearch) -> Given:
    return Given(
        trial_id="trial-1",
        folder=finished_search.storage / "trial-1",
        trial=finished_search.experiment.trial_config({**FAST, "model.dropout": 0.4}),
        seed=2,
        data=finished_search.experiment.data,
        fingerprint=finished_search.data.fingerprint,
    )


def run(job: Given, report: Callable[..., object], *checkpoints: Path) -> None:
    """Train, with these checkpoints, newest first."""
    trial.run(job, open_data=job.open, device=CPU, checkpoints=checkpoints, report=report)


def reports(job: Given, *checkpoints: Path) -> list[Report]:
    """All reports of a trial that finds these checkpoints, newest first."""
    told: list[Report] = []
    run(job, lambda metrics, save, keep: told.append((metrics, save)), *checkpoints)
    return told


def with_learning_rate(job: Given, rate: float) -> Given:
    return replace(job, trial=replace(job.trial, optimizer=replace(job.trial.optimizer, learning_rate=rate)))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: metrics[key] for key in ("gap", "gap_best", "hit_at_1", "map", "loss_train", "loss_validate")}


def test_every_epoch_is_reported_with_its_metrics_and_place(job: Given) -> None:
    told = [metrics for metrics, _ in reports(job)]
    assert [(metrics["epoch"], metrics["epochs"]) for metrics in told] == [(1, 2), (2, 2)]
    for metrics in told:
        assert {"gap", "gap_best", "hit_at_1", "perr", "map", "learning_rate", "videos_per_second"} <= metrics.keys()
        assert metrics["tags"]["device"] == "cpu" and metrics["tags"]["host"]
        assert metrics["tags"]["process"] == str(os.getpid())
        assert metrics["tags"]["threads"] == str(torch.get_num_threads())
        assert not {"history", "error"} & metrics.keys()


def test_a_report_comes_with_the_checkpoint_of_its_epoch(job: Given, tmp_path: Path) -> None:
    saved = []

    def keep(metrics: dict[str, Any], save: Callable[[Path], None] | None, names: Sequence[str]) -> None:
        assert save is not None
        folder = tmp_path / folder_name(metrics["epoch"])
        save(folder)
        _, position = checkpoint.load(folder, settings=job.trial.settings)
        saved.append(len(position["history"]))

    run(job, keep)
    assert saved == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0002"]


def test_a_resumed_trial_first_reports_all_of_its_epochs_again(job: Given, tmp_path: Path) -> None:
    whole = []

    def keep(metrics: dict[str, Any], save: Callable[[Path], None] | None, names: Sequence[str]) -> None:
        whole.append(metrics)
        if metrics["epoch"] == 1 and save is not None:
            save(tmp_path / "one")

    run(job, keep)
    (again, save), (second, _) = reports(job, tmp_path / "one")
    assert save is None  # its checkpoint exists
    assert [numbers(epoch) for epoch in again["history"]] == [numbers(whole[0])]
    assert (again["epoch"], again["epochs"]) == (1, 2)
    assert numbers(second) == numbers(whole[1]) and "history" not in second


def test_a_trial_that_had_ended_reports_its_epochs_and_trains_no_more(job: Given, tmp_path: Path) -> None:
    *_, (_, save) = reports(job)
    assert save is not None
    save(tmp_path / "last")
    ((again, _),) = reports(job, tmp_path / "last")
    assert [epoch for epoch, _ in epochs_of(again)] == [1, 2]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:50] + b"?" + content[51:]])
def test_instead_of_a_damaged_checkpoint_the_one_before_is_used_with_a_note(
    job: Given, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    for metrics, save in (told := reports(job)):
        assert save is not None
        save(tmp_path / folder_name(metrics["epoch"]))  # of the end of training, both
    one, two = tmp_path / "one", tmp_path / folder_name(2)

    def keep(metrics: dict[str, Any], save: Callable[[Path], None] | None, names: Sequence[str]) -> None:
        if metrics["epoch"] == 1 and save is not None:
            save(one)

    run(job, keep)
    weights = two / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    (again, _), (second, _) = reports(job, two, one)
    assert again["note"].startswith(f"{weights}: ") and again["note"].endswith("; resumed after epoch 1")
    assert again["tags"]["note"] == second["tags"]["note"] == again["note"] and "note" not in second
    assert numbers(second) == numbers(told[1][0])

    (first, _), (second, _) = reports(job, two)
    assert first["epoch"] == 1 and first["note"].endswith("; started again from the beginning")
    assert numbers(second) == numbers(told[1][0])


def test_the_best_epoch_s_checkpoint_and_the_last_two_are_kept() -> None:
    history = [{"epoch": epoch, "gap": gap} for epoch, gap in ((3, 0.1), (4, 0.5), (5, 0.5), (6, 0.2), (7, 0.3))]
    assert kept(history) == ["epoch-0004", "epoch-0006", "epoch-0007"]
    assert set(kept(history[:1])) == {"epoch-0003"}
    assert set(kept(history[:2])) == {"epoch-0003", "epoch-0004"}


def test_too_little_memory_is_told_as_such(job: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(job.trial.model, hidden=10**7, towers=dict.fromkeys(job.trial.model.towers, 10**7))
    huge = replace(job, trial=replace(job.trial, model=model))
    with pytest.raises(TrialOutOfMemory, match=r"training needs at least .* GiB of memory, but this machine has"):
        reports(huge)
    monkeypatch.setattr(needs, "check", lambda *arguments, **options: None)  # what it cannot foresee
    with pytest.raises(TrialOutOfMemory, match=r"not enough memory on .*a smaller batch or a smaller model needs less"):
        reports(huge)


def test_a_loss_that_diverges_is_reported_and_ends_the_trial(job: Given) -> None:
    wild = OptimizerConfig(kind="adamw", learning_rate=1e6, weight_decay=1e6)
    ((error, save),) = reports(replace(job, trial=replace(job.trial, optimizer=wild)))
    assert error["cause"] == "settings" and save is None
    assert error["error"].startswith("TrialDiverged: the loss is not finite in epoch 1 by step ")


def test_a_damaged_shard_is_a_fatal_error(job: Given, finished_search: FinishedSearch, tmp_path: Path) -> None:
    (shard, *_) = sorted((finished_search.folder / "shards").glob("train*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    (tmp_path / "bad.tfrecord").write_bytes(content)
    data = replace(job.data, train=str(tmp_path / "bad.tfrecord"), cache_folder=str(tmp_path / "cache"))
    ((told, save),) = reports(replace(job, data=data))
    assert told.keys() == {"fatal"} and save is None
    assert "bad.tfrecord: record at byte 0" in told["fatal"]


def test_a_shard_that_changes_while_a_trial_reads_it_in_every_epoch_is_a_fatal_error(
    job: Given, finished_search: FinishedSearch, tmp_path: Path
) -> None:
    """Every trial would fail so: the search ends, instead of failing them one by one."""
    shards = [Path(shutil.copy(path, tmp_path)) for path in (finished_search.folder / "shards").glob("train*.tfrecord")]
    config = replace(
        job.data, train=f"{tmp_path}/train*", cache="none", buffer=50, cache_folder=str(tmp_path / "cache")
    )
    data = open_dataset(config)
    shards[0].write_bytes(shards[1].read_bytes())
    told: list[dict[str, Any]] = []
    trial.run(
        job,
        open_data=lambda: data,
        device=torch.device("cpu"),
        checkpoints=(),
        report=lambda metrics, save, kept: told.append(metrics),
    )
    assert told[-1].keys() == {"fatal"} and "changed since its labels were read" in told[-1]["fatal"]


def test_a_missing_shard_is_a_fatal_error(job: Given, tmp_path: Path) -> None:
    data = replace(job.data, train=f"{tmp_path}/none*", cache_folder=str(tmp_path / "cache"))
    ((told, _),) = reports(replace(job, data=data))
    assert f"{tmp_path}/none*: no file matches" in told["fatal"]


def test_other_shards_than_the_search_began_with_are_not_trained_on(
    job: Given, finished_search: FinishedSearch, tmp_path: Path
) -> None:
    (shard, *_) = sorted((finished_search.folder / "shards").glob("train*.tfrecord"))
    data = replace(job.data, train=str(shard), cache_folder=str(tmp_path / "cache"))
    ((told, _),) = reports(replace(job, data=data))
    assert "the data has changed since the search began" in told["fatal"] and "1 shards" in told["fatal"]


def test_missing_shards_are_not_needed_where_they_are_decoded(job: Given, tmp_path: Path) -> None:
    told = reports(replace(job, data=replace(job.data, train=f"{tmp_path}/gone*.tfrecord")))
    assert [metrics["epoch"] for metrics, _ in told] == [1, 2]


def test_a_full_disk_is_a_fatal_error(job: Given, tmp_path: Path) -> None:
    told = []

    def report(metrics: dict[str, Any], save: Callable[[Path], None] | None, names: Sequence[str]) -> None:
        if save is not None:
            raise OSError(28, "No space left on device", "/storage/epoch-0001")
        told.append(metrics)

    run(job, report)
    (fatal,) = told
    assert "/storage/epoch-0001: cannot be written, the disk is full" in fatal["fatal"]


def test_a_checkpoint_of_other_settings_is_reported_and_ends_the_trial(job: Given, tmp_path: Path) -> None:
    (_, save), _ = reports(job)
    assert save is not None
    save(tmp_path / "one")
    ((error, _),) = reports(with_learning_rate(job, 0.5), tmp_path / "one")
    assert error["error"].startswith("CheckpointError: ") and "optimizer.learning_rate: 0.03 -> 0.5" in error["error"]


def test_an_unexpected_error_is_raised(job: Given) -> None:
    def broken(*report: object) -> None:
        raise RuntimeError("the actor died")

    with pytest.raises(RuntimeError, match="the actor died"):
        run(job, broken)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(5, "Input/output error"), True),
        (ConnectionError("the store does not answer"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RayActorError(), True),
        (ValueError("Expected more than 1 value per channel when training"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_the_settings_cause_is_not_tried_again(error: Exception, expected: bool) -> None:
    assert again(error) is expected


def test_checkpoints_sort_by_epoch() -> None:
    names = [folder_name(epoch) for epoch in (1, 9, 10, 100)]
    assert names == sorted(names) == ["epoch-0001", "epoch-0009", "epoch-0010", "epoch-0100"]


def test_of_a_slots_three_processes_the_workers_alone_import_torch() -> None:
    experiment, resources = load(PROJECT / "experiments.yaml", "quickstart"), Resources(gpu=1, cpu=1)
    actor = cloudpickle.dumps(slot(experiment, Path("s"), Path("e"), resources, "f", print))
    program = f"import pickle, sys; assert callable(pickle.loads({actor!r})); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)
