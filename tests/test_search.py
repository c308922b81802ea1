"""Whole searches with a real Ray, a real SQLite MLflow and real signals: what a night must survive."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from workplace import Workplace, wait_for

from tuner import cluster, config, journal
from tuner.dataset import open_dataset
from tuner.journal import SearchRecord
from tuner.train import train

EPOCHS = 12


def search_of(place: Workplace) -> SearchRecord:
    """The one search of the folder."""
    (directory,) = journal.searches(place.folder / "storage", "tiny")
    return journal.read(directory)


def runs_of(place: Workplace) -> Iterator[tuple[dict[str, str], str, list[int]]]:
    """Tags, status and logged epochs of every MLflow run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            history = client.get_metric_history(run.info.run_id, "gap")
            yield run.data.tags, run.info.status, [metric.step for metric in history]


def assert_nothing_was_lost(place: Workplace, planned: int) -> None:
    """Exactly the planned trials, each suggested once, every epoch once; every run closed, one for each trial."""
    search = search_of(place)
    assert [trial.number for trial in search.trials.values()] == list(range(planned))
    assert all(trial.status == "finished" for trial in search.trials.values())
    assert all(list(trial.reports) == list(range(1, EPOCHS + 1)) for trial in search.trials.values())
    suggestions = Counter(tuple(trial.values.items()) for trial in search.trials.values())
    assert set(suggestions.values()) == {1}
    runs = list(runs_of(place))
    assert {status for _, status, _ in runs} == {"FINISHED"}
    trials = {tags["trial_id"]: steps for tags, _, steps in runs if "trial_id" in tags}
    assert len(runs) == planned + 1 and trials.keys() == search.trials.keys()
    assert all(sorted(steps) == list(range(1, EPOCHS + 1)) for steps in trials.values())


def assert_equals_the_uninterrupted(place: Workplace, number: int) -> None:
    """A trial that was resumed has the numbers of one that was not."""
    search = search_of(place)
    experiment = config.load(place.folder / "experiments.yaml", "tiny", search.overrides)
    trial = list(search.trials.values())[number]
    settings = experiment.trial_config(trial.values)
    torch.set_num_threads(1)
    data = open_dataset(experiment.data)
    expected = {p.epoch: p.metrics["gap"] for p in train(settings, data, device=torch.device("cpu"), seed=1)}
    assert {epoch: report["gap"] for epoch, report in trial.reports.items()} == pytest.approx(expected)


def processes_of(place: Workplace, name: str) -> list[psutil.Process]:
    """Ray's processes of that title whose environment names this folder's search."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith(f"ray::{name}") and process.ppid() in raylets_of(place):
            found.append(process)
    return found


def raylets_of(place: Workplace) -> set[int]:
    """The raylets that the folder's drivers started."""
    return {
        child.pid
        for process in place.started
        if process.poll() is None
        for child in psutil.Process(process.pid).children()
        if "raylet" in child.name()
    }


@contextmanager
def long_lived_ray(folder: Path) -> Iterator[str]:
    """A Ray head of its own on this machine, ended by its own processes' ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    scratch = tempfile.mkdtemp(prefix="ray-")
    command = ["start", "--head", "--block", f"--port={address.split(':')[1]}"]
    command += ["--num-cpus=2", f"--temp-dir={scratch}", "--object-store-memory=100000000", "--dashboard-port=0"]
    with (folder / "head.txt").open("w") as file:
        head = subprocess.Popen([str(Path(sys.executable).parent / "ray"), *command], stdout=file, stderr=file)
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "head.txt").read_text())
        yield address
    finally:
        children = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.slow
def test_a_search_ends_with_a_model_that_scores_what_it_says(workplace: Workplace) -> None:
    code, printed = workplace.run()
    assert code == 0, printed
    assert_nothing_was_lost(workplace, planned=3)
    search = search_of(workplace)
    assert search.ended == "planned"
    best = search.finished[0]
    assert best.score is not None and best.score > 2 * search.baseline
    assert f"best trial {best.number:03d}: GAP {best.score:.4f}" in printed
    assert "python -m tuner.best tiny --export" in printed and "mlflow ui" in printed

    exported = workplace.python("-m", "tuner.best", "--export")
    assert exported.returncode == 0, exported.stderr
    (folder,) = (workplace.folder / "exports").iterdir()
    evaluated = workplace.python("-m", "tuner.evaluate", str(folder), "--data", "shards/validate*.tfrecord")
    assert evaluated.returncode == 0, evaluated.stderr
    (gap,) = re.findall(r'"gap": ([0-9.]+)', evaluated.stdout)
    assert float(gap) == pytest.approx(best.score, abs=1e-6)

    extended, printed = workplace.run("--extend", "2")
    assert extended == 0, printed
    assert_nothing_was_lost(workplace, planned=5)
    assert workplace.run("--resume")[0] == 2


@pytest.mark.fault
def test_a_killed_driver_is_resumed_where_its_trials_stood(workplace: Workplace) -> None:
    driver = workplace.start("--set", "model.hidden=12")
    workplace.wait_for_line(driver, "trial 001  epoch 3/")
    driver.kill()
    driver.wait()
    before = search_of(workplace)
    assert len(before.finished) == 1 and before.ended is None

    code, printed = workplace.run("--resume", output="resumed.txt")
    assert code == 0, printed
    assert_nothing_was_lost(workplace, planned=3)
    assert "trial 000  epoch" not in printed  # what had finished is not run again
    assert "trial 001  epoch 1/" not in printed  # what had not goes on
    assert_equals_the_uninterrupted(workplace, number=1)


@pytest.mark.fault
def test_a_killed_worker_and_a_killed_trial_go_on_from_their_checkpoint(workplace: Workplace) -> None:
    driver = workplace.start("--set", "search.overlap=false")
    workplace.wait_for_line(driver, "trial 000  epoch 3/")
    (worker,) = processes_of(workplace, "RayTrainWorker")
    worker.kill()
    workplace.wait_for_line(driver, "trial 001  epoch 3/")
    (actor,) = processes_of(workplace, "ImplicitFunc")
    actor.kill()
    assert driver.wait(240) == 0, workplace.printed()
    assert_nothing_was_lost(workplace, planned=3)
    assert_equals_the_uninterrupted(workplace, number=0)
    assert_equals_the_uninterrupted(workplace, number=1)


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_search_in_order_and_says_how_to_go_on(workplace: Workplace, number: signal.Signals) -> None:
    driver = workplace.start()
    workplace.wait_for_line(driver, "trial 000  epoch 3/")
    own = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, number)
    assert driver.wait(60) == 130, workplace.printed()
    assert "python tune.py tiny --resume" in workplace.printed()
    assert {status for _, status, _ in runs_of(workplace)} == {"KILLED"}
    _, alive = psutil.wait_procs(own, timeout=30)
    assert not alive, alive

    code, printed = workplace.run("--resume", output="resumed.txt")
    assert code == 0, printed
    assert_nothing_was_lost(workplace, planned=3)


@pytest.mark.fault
def test_a_trial_that_diverges_fails_and_the_search_goes_on(workplace: Workplace) -> None:
    file = workplace.folder / "experiments.yaml"
    file.write_text(
        file.read_text().replace(
            "{loguniform: [1.0e-3, 1.0e-2]}", "{choice: [1.0e-3, 2.0e-3, 3.0e-3, 1.0e+39], default: 1.0e+39}"
        )
    )
    code, printed = workplace.run("--set", "training.epochs=3")
    assert code == 0, printed
    search = search_of(workplace)
    (failed, *_) = search.failed
    assert failed.number == 0 and "the loss is not finite" in (failed.error or "")
    statuses = {tags["trial_number"]: status for tags, status, _ in runs_of(workplace) if "trial_id" in tags}
    assert statuses["0"] == "FAILED"


CONTRASTIVE = """\
default: tiny
experiments:
  tiny:
    data:
      sample: {directory: shards, train: 300, validate: 100, shards: 2}
      train: shards/train*.tfrecord
      validate: shards/validate*.tfrecord
      features: {mean_rgb: 32, mean_audio: 8}
      num_classes: 20
      label_fraction: 0.5
    pipeline: contrastive
    model: {kind: fused_mlp, towers: {mean_rgb: 16, mean_audio: 8}, hidden: 16, dropout: 0.1}
    pretrain: {kind: moco_v2, queue: 100, momentum: 0.9, optimizer: {kind: adamw, learning_rate: 1e-3}, batch_size: 64, epochs: 6}
    probe: {optimizer: {kind: adam, learning_rate: {loguniform: [1e-3, 1e-2]}}, batch_size: 32, epochs: 6}
    training: {precision: fp32}
    search: {trials: 2, scheduler: {kind: none}, max_concurrent: 1, overlap: false}
    resources: {cpu: 1}
"""  # noqa: E501


@pytest.mark.fault
def test_both_halves_of_a_contrastive_trial_survive_and_share_their_encoder(workplace: Workplace) -> None:
    (workplace.folder / "experiments.yaml").write_text(CONTRASTIVE)
    driver = workplace.start()
    workplace.wait_for_line(driver, "trial 000  epoch 3/12  contrastive loss")
    (worker,) = processes_of(workplace, "RayTrainWorker")
    worker.kill()
    workplace.wait_for_line(driver, "trial 000  epoch 9/12  loss")
    driver.kill()
    driver.wait()
    code, printed = workplace.run("--resume", output="resumed.txt")
    assert code == 0, printed
    assert "contrastive loss" not in printed  # trial 0 goes on in its second half; trial 1 takes its encoder
    assert "trial 001  epoch 6/12  GAP" in printed and "took the encoder of another trial" in printed

    search = search_of(workplace)
    first, second = search.trials.values()
    assert list(first.reports) == list(range(1, 13)) and list(second.reports) == list(range(6, 13))
    experiment = config.load(workplace.folder / "experiments.yaml", "tiny")
    torch.set_num_threads(1)
    data = open_dataset(experiment.data)
    whole = train(experiment.trial_config(first.values), data, device=torch.device("cpu"), seed=1)
    expected = {progress.epoch: progress.metrics["gap"] for progress in whole}
    assert {epoch: report["gap"] for epoch, report in first.reports.items()} == pytest.approx(expected)
    tags = {found["trial_id"]: found for found, _, _ in runs_of(workplace) if "trial_id" in found}
    assert {found["encoder_made_by"] for found in tags.values()} == {first.id}
    assert {status for _, status, _ in runs_of(workplace)} == {"FINISHED"}

    exported = workplace.python("-m", "tuner.best", "--export", "model")
    assert exported.returncode == 0, exported.stderr
    files = {path.name for path in (workplace.folder / "model").iterdir()}
    assert {"encoder.safetensors", "encoder.pt2", "probe.safetensors", "model.pt2"} <= files
    evaluated = workplace.python("-m", "tuner.evaluate", "model", "--data", "shards/validate*.tfrecord")
    (gap,) = re.findall(r'"gap": ([0-9.]+)', evaluated.stdout)
    assert float(gap) == pytest.approx(search.finished[0].score, abs=1e-6)


@pytest.mark.fault
def test_a_ray_that_outlives_the_driver_is_left_as_it_was(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.state import list_actors

    with long_lived_ray(workplace.folder) as address:
        driver = workplace.start("--address", address)
        workplace.wait_for_line(driver, "trial 000  epoch 3/")
        driver.kill()
        driver.wait()
        code, printed = workplace.run("--resume", "--address", address, output="resumed.txt")
        assert code == 0, printed
        assert_nothing_was_lost(workplace, planned=3)
        monkeypatch.setenv("RAY_ADDRESS", address)  # the State API asks for it where there are several Rays
        cluster._join(address)
        living = partial(list_actors, filters=[("state", "!=", "DEAD")])
        try:
            groups = ray.util.placement_group_table().values()
            assert {group["state"] for group in groups} <= {"REMOVED"}
            # Ray keeps its own coordinator of autoscaling, one for all who use the cluster.
            wait_for(lambda: {actor.class_name for actor in living()} <= {"_AutoscalingCoordinatorActor"}, seconds=60)
        finally:
            ray.shutdown()
