"""Whole searches with a real Ray, a real SQLite store of MLflow and real signals."""

import re
import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batches import Batches
from models import FeatureStatistics
from tests.support.rays import long_lived_ray, with_token
from tests.support.searches import assert_nothing_was_lost, entries_of, processes_of, runs_of, search_of
from tests.support.workplace import Workplace, wait_for
from tuner.config.experiment import load
from tuner.search.begin import frequency_baseline
from tuner.storage import journal, searches
from tuner.training.checkpoint import WEIGHTS
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train

EPOCHS = 12


def test_the_baseline_ranks_a_class_by_its_share_of_the_segments_rated_for_it() -> None:
    """Class 0 labels 2 of 4 rated segments, class 1 the only one that is rated for it: class 1 ranks first."""
    statistics = FeatureStatistics(
        num_videos=4,
        mean_D=torch.zeros(3),
        variance_D=torch.ones(3),
        label_counts_C=torch.tensor([2, 1]),
        rated_counts_C=torch.tensor([4, 1]),
    )
    segment = SimpleNamespace(
        fingerprint="one segment, rated for both classes",
        features_ND=np.zeros((5, 3), np.uint8),
        frame_offsets=np.array([0, 5]),
        label_offsets=np.array([0, 1]),
        label_indices=np.array([1], np.int32),
        rated_offsets=np.array([0, 2]),
        rated_indices=np.array([0, 1], np.int32),
        stream=None,
        parts=None,
    )
    batches = Batches(segment, batch_size=1, shuffle=False)
    assert frequency_baseline(batches, SimpleNamespace(statistics=statistics)) == 1


@pytest.mark.slow
def test_an_unreachable_mlflow_ends_a_search_in_one_sentence_before_it_begins(workplace: Workplace) -> None:
    """MLflow connects while Ray starts: the search must not begin before both have."""
    uri = "http://127.0.0.1:1"
    code, printed = workplace.run("tiny", "--tracking-uri", uri)
    assert code == 2 and printed.splitlines()[-1].startswith(f"MLflow at {uri}: "), printed
    assert "Traceback" not in printed and "trial 000" not in printed
    assert not searches.folders(workplace.folder / "storage", "tiny")
    assert not processes_of(workplace)


@pytest.mark.slow
def test_a_search_begins_with_what_the_one_before_knows_and_an_unchanged_one_trains_nothing(
    workplace: Workplace,
) -> None:
    code, printed = workplace.run("--trials", "2")
    assert code == 0, printed
    first = search_of(workplace)

    code, printed = workplace.run("--trials", "2", output="again.txt")
    assert code == 0 and f"search {first.id} has run exactly this experiment" in printed, printed
    assert f"best trial {first.finished[0].number:03d}" in printed and "started" not in printed
    assert search_of(workplace).id == first.id

    code, printed = workplace.run("--trials", "3", "--warm-start", first.id, output="warm.txt")
    assert code == 0, printed
    assert f"warm start: 2 of 2 trials of search {first.id} of tiny teach the sampler" in printed
    _, directory = searches.folders(workplace.folder / "storage", "tiny")
    second = journal.read(directory)
    best = first.finished[0]
    taken = [trial for trial in second.trials.values() if trial.known]
    assert [trial.known["trial"] for trial in taken if trial.known][-1] == best.id
    assert len(second.trials) == 3 and len(taken) == (1 if best.number == 0 else 2)
    weights = [len(list((directory / "trials" / trial.id).glob(f"epoch-*/{WEIGHTS}"))) for trial in taken]
    assert weights == [1] * len(taken)
    assert "trial 000  started" not in printed
    exported = workplace.python("-m", "tuner.best", "--export")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cache, workers", [("none", 1), ("share", 2)])
def test_a_search_without_a_copy_of_the_features_ends_with_its_model(
    workplace: Workplace, cache: str, workers: int
) -> None:
    """Training, validation, the scoring of the winner and the export read the shards, or the workers' shares."""
    workplace.variables["TUNER_CACHE"] = str(workplace.folder / "cache")
    settings = {
        "data.cache": cache,
        "resources.workers": workers,
        "data.sample.shards": 4,
        "data.sample.validate": 150,
        "data.sample.seed": 5,
        "training.epochs": 3,
    }
    overrides = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
    code, printed = workplace.run("--trials", "2", *overrides)
    assert code == 0, printed
    assert_nothing_was_lost(workplace, planned=2, epochs=3)
    best = search_of(workplace).finished[0]
    assert f"best trial {best.number:03d}: GAP {best.score:.4f}" in printed and "on all of validate: GAP" in printed
    kept = sorted(path.stat().st_size for path in (workplace.folder / "cache").glob("*/features.npy"))
    of_video, header = 2 * 40, 128
    # The two shards of each split for each rank: half of 300 and of 150 videos.
    assert kept == ([] if cache == "none" else [header + of_video * count for count in (75, 75, 150, 150)])
    exported = workplace.python("-m", "tuner.best", "--export")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_a_search_ends_with_a_model_that_has_the_reported_score(workplace: Workplace) -> None:
    code, printed = workplace.run()
    assert code == 0, printed
    assert_nothing_was_lost(workplace, planned=3, epochs=EPOCHS)
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
    assert_nothing_was_lost(workplace, planned=5, epochs=EPOCHS)
    began = [entry["id"] for entry in entries_of(workplace) if entry["type"] == "report" and entry["epoch"] == 1]
    assert began == sorted(began)  # of the two trials at a time, one trains
    assert workplace.run("--resume")[0] == 2


@pytest.mark.slow
def test_a_search_that_is_run_from_python_returns_its_results(workplace: Workplace) -> None:
    program = """
from tuner import search
results = search.run("experiments.yaml", overrides=["search.trials=2", "training.epochs=2"])
more = search.run("experiments.yaml", extend=1, search=results.id)
rows = more.table()
print("rows", [(row["number"], row["status"], row["epochs"], row["model.dropout"] is not None) for row in rows])
print("best", more.best_trial().score == max(row["score"] for row in rows), more.id == results.id)
"""
    done = workplace.python("-c", program, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [(number, "finished", 2, True) for number in range(3)]
    assert f"rows {rows}" in done.stdout and "best True True" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_new_search_removes_what_a_killed_driver_has_left_on_a_long_lived_ray(workplace: Workplace) -> None:
    with long_lived_ray(workplace) as ray:
        driver = workplace.start("--address", ray.address, "--set", "training.epochs=300")
        workplace.wait_for_line(driver, "trial 000  epoch 2/")
        driver.kill()
        driver.wait()
        killed = search_of(workplace)
        assert "RUNNING" in {status for _, status, _ in runs_of(workplace)}
        code, printed = workplace.run("--address", ray.address, "--trials", "1", output="second.txt")
        assert code == 0, printed
        assert f"search {killed.id} of tiny has not ended" in printed and f"--resume {killed.id}" in printed
        ray.assert_nothing_is_left()
    assert {status for _, status, _ in runs_of(workplace)} == {"KILLED", "FINISHED"}


@pytest.mark.slow
def test_a_trial_that_waits_for_what_another_job_holds_says_so(workplace: Workplace) -> None:
    holder = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"CPU": 1.5}])
ray.get(group.ready())
print("held", flush=True)
sys.stdin.read()
"""
    with long_lived_ray(workplace, cpus=2) as ray:
        arguments = [sys.executable, "-c", holder, ray.address]
        with subprocess.Popen(
            arguments, stdin=PIPE, stdout=PIPE, text=True, env=workplace.environment | with_token()
        ) as other:
            assert other.stdout is not None and other.stdin is not None
            while other.stdout.readline().strip() != "held":
                assert other.poll() is None
            driver = workplace.start("--address", ray.address, "--trials", "1")
            waits = "trial 000  waits for 1 CPU, for "
            workplace.wait_for_line(driver, waits)
            assert "0.5 of 2 CPUs are free; other programs or trials hold the rest" in workplace.printed()
            other.stdin.close()
        assert driver.wait(300) == 0, workplace.printed()


@pytest.mark.slow
def test_slots_come_and_go_with_the_nodes_of_the_cluster(workplace: Workplace) -> None:
    with long_lived_ray(workplace, cpus=1) as ray:
        wide = ("--set", "search.max_concurrent=auto", "--trials", "6")
        driver = workplace.start("--address", ray.address, "--set", "training.epochs=300", *wide)
        workplace.wait_for_line(driver, "trial 000  epoch 3/")
        assert "1 trial at a time" in workplace.printed() and "trial 001" not in workplace.printed()
        raylet = ray.add_node(cpus=1)
        workplace.wait_for_line(driver, "it now holds 2 trials at a time")
        wait_for(lambda: sum(trial.last_epoch >= 3 for trial in search_of(workplace).unfinished) == 2)
        assert raylet.pid in {worker.ppid() for worker in processes_of(workplace, "RayTrainWorker")}
        raylet.kill()
        workplace.wait_for_line(driver, "it now holds 1 trial at a time")
        assert driver.wait(600) == 0, workplace.printed()
        ray.assert_nothing_is_left()
    assert "resumed after epoch" in workplace.printed()
    assert_nothing_was_lost(workplace, planned=6, epochs=300)


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
    search: {trials: 2, scheduler: {kind: none}, max_concurrent: 1}
    resources: {cpu: 1}
"""  # noqa: E501


@pytest.mark.slow
def test_both_phases_of_a_contrastive_trial_resume_and_share_their_encoder(workplace: Workplace) -> None:
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
    assert "trial 001  epoch 6/12  GAP" in printed and "uses the encoder of another trial" in printed

    search = search_of(workplace)
    first, second = search.trials.values()
    assert list(first.reports) == list(range(1, 13)) and list(second.reports) == list(range(6, 13))
    experiment = load(workplace.folder / "experiments.yaml", "tiny")
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
