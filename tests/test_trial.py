"""The worker's side of a search, through its seam: what Ray calls, minus Ray."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finished import FAST, FinishedSearch

from tuner import checkpoint
from tuner.resources import Resources
from tuner.trial import Job, checkpoint_name, epochs_of, run

CPU = torch.device("cpu")
Report = tuple[dict[str, Any], Callable[[Path], None] | None]


@pytest.fixture
def job(finished_search: FinishedSearch) -> Job:
    return Job(
        trial_id="trial-1",
        trial=finished_search.experiment.trial_config({**FAST, "model.dropout": 0.4}),
        data=finished_search.experiment.data,
        seed=2,
        resources=Resources(gpu=0.0, cpu=1.0),
    )


def reports(job: Job, resume_from: Path | None = None) -> list[Report]:
    """All that a trial tells."""
    told: list[Report] = []
    run(job, device=CPU, resume_from=resume_from, report=lambda metrics, save: told.append((metrics, save)))
    return told


def with_learning_rate(job: Job, rate: float) -> Job:
    return replace(job, trial=replace(job.trial, optimizer=replace(job.trial.optimizer, learning_rate=rate)))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: metrics[key] for key in ("gap", "gap_best", "hit_at_1", "map", "loss_train", "loss_validate")}


def test_every_epoch_is_reported_with_its_metrics_and_place(job: Job) -> None:
    told = [metrics for metrics, _ in reports(job)]
    assert [(metrics["epoch"], metrics["epochs"]) for metrics in told] == [(1, 2), (2, 2)]
    for metrics in told:
        assert {"gap", "gap_best", "hit_at_1", "perr", "map", "learning_rate", "videos_per_second"} <= metrics.keys()
        assert metrics["tags"]["device"] == "cpu" and metrics["tags"]["host"]
        assert not {"history", "error"} & metrics.keys()


def test_a_report_brings_the_checkpoint_of_its_epoch(job: Job, tmp_path: Path) -> None:
    saved = []

    def keep(metrics: dict[str, Any], save: Callable[[Path], None] | None) -> None:
        assert save is not None
        folder = tmp_path / checkpoint_name(metrics["epoch"])
        save(folder)
        _, position = checkpoint.load(folder, settings=job.trial.settings)
        saved.append(len(position["history"]))

    run(job, device=CPU, resume_from=None, report=keep)
    assert saved == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0002"]


def test_a_resumed_trial_first_tells_all_of_its_epochs_once_more(job: Job, tmp_path: Path) -> None:
    whole = []

    def keep(metrics: dict[str, Any], save: Callable[[Path], None] | None) -> None:
        whole.append(metrics)
        if metrics["epoch"] == 1 and save is not None:
            save(tmp_path / "one")

    run(job, device=CPU, resume_from=None, report=keep)
    (again, save), (second, _) = reports(job, resume_from=tmp_path / "one")
    assert save is None  # its checkpoint is there
    assert [numbers(epoch) for epoch in again["history"]] == [numbers(whole[0])]
    assert (again["epoch"], again["epochs"]) == (1, 2)
    assert numbers(second) == numbers(whole[1]) and "history" not in second


def test_a_trial_that_had_ended_tells_its_epochs_and_trains_no_more(job: Job, tmp_path: Path) -> None:
    *_, (_, save) = reports(job)
    assert save is not None
    save(tmp_path / "last")
    ((again, _),) = reports(job, resume_from=tmp_path / "last")
    assert [epoch for epoch, _ in epochs_of(again)] == [1, 2]


def test_a_loss_that_diverges_is_told_and_ends_the_trial(job: Job) -> None:
    ((error, save),) = reports(with_learning_rate(job, 1e38))
    assert error.keys() == {"error"} and save is None
    assert error["error"].startswith("TrialDiverged: the loss is not finite in epoch 1 by step 2")


def test_a_damaged_shard_is_told_and_ends_the_trial(job: Job, finished_search: FinishedSearch, tmp_path: Path) -> None:
    (shard, *_) = sorted((finished_search.folder / "shards").glob("train*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    (tmp_path / "bad.tfrecord").write_bytes(content)
    data = replace(job.data, train=str(tmp_path / "bad.tfrecord"), cache=str(tmp_path / "cache"))
    ((error, _),) = reports(replace(job, data=data))
    assert error["error"].startswith("ShardError: ") and "bad.tfrecord: record at byte 0" in error["error"]


def test_a_missing_shard_is_told_and_ends_the_trial(job: Job, tmp_path: Path) -> None:
    ((error, _),) = reports(replace(job, data=replace(job.data, train=f"{tmp_path}/none*")))
    assert error["error"].startswith("NoShardsError: ") and "none*" in error["error"]


def test_a_checkpoint_of_other_settings_is_told_and_ends_the_trial(job: Job, tmp_path: Path) -> None:
    (_, save), _ = reports(job)
    assert save is not None
    save(tmp_path / "one")
    ((error, _),) = reports(with_learning_rate(job, 0.5), resume_from=tmp_path / "one")
    assert error["error"].startswith("CheckpointError: ") and "optimizer.learning_rate: 0.03 -> 0.5" in error["error"]


def test_a_mistake_of_ours_is_no_report_but_an_exception_that_ray_tries_again(job: Job) -> None:
    def broken(metrics: dict[str, Any], save: object) -> None:
        raise RuntimeError("the actor died")

    with pytest.raises(RuntimeError, match="the actor died"):
        run(job, device=CPU, resume_from=None, report=broken)


def test_a_job_travels_to_its_worker(job: Job) -> None:
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_report_tells_of_its_own_epoch_or_of_all_so_far() -> None:
    one, two = {"epoch": 1, "gap": 0.1}, {"epoch": 2, "gap": 0.2}
    assert epochs_of(two) == [(2, two)]
    assert epochs_of({**two, "history": [one, two]}) == [(1, one), (2, two)]


def test_checkpoints_sort_by_epoch() -> None:
    names = [checkpoint_name(epoch) for epoch in (1, 9, 10, 100)]
    assert names == sorted(names) == ["epoch-0001", "epoch-0009", "epoch-0010", "epoch-0100"]
