"""Every benchmark runs from the project's root and prints its comparison and one JSON object in the last line."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from optuna.trial import FixedTrial

from models.video.fused_mlp import FusedMLPConfig
from tests.support.workplace import PROJECT
from tuner.config.experiment import load
from tuner.search.sampling.suggestions import optuna_distribution

pytestmark = pytest.mark.bench

TINY = {
    "cache_modes": ["--videos", "200", "--frame-videos", "40", "--rounds", "1", "--batch-size", "32"],
    "decode": ["--videos", "200", "--rounds", "1"],
    "feed": ["--videos", "200", "--rounds", "1", "--batch-size", "64"],
    "gap": ["--videos", "1024", "--rounds", "1", "--stream", "2048"],
    "samplers": [
        "--seeds",
        "1",
        "--trials",
        "14",
        "--history",
        "60",
        "--only",
        "failing",
        "finite",
        "table",
        "tpe",
        "grid",
    ],
    "search": ["--trials", "3", "--epochs", "2", "--videos", "400"],
    "pretrain": ["--videos", "128", "--rounds", "1", "--batch-size", "64", "--threads", "1"],
    "step": ["--videos", "128", "--rounds", "1", "--batch-size", "64", "--threads", "1"],
}


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{name}.py", *options]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_ends_with_one_json_line_that_has_its_ratio(name: str) -> None:
    done = run(name, *TINY[name])
    assert done.returncode == 0, done.stderr
    *card, last = done.stdout.splitlines()
    report: dict[str, Any] = json.loads(last)
    assert report["benchmark"] == name
    assert report["ratio"] > 0 and report["aim"] > 0
    assert report["machine"]["torch"]
    assert any(f"ratio {report['ratio']}" in line for line in card)


def test_every_benchmark_has_a_test_here() -> None:
    scripts = {path.stem for path in Path(PROJECT, "benchmarks").glob("*.py")}
    # These take minutes to hours: searches on a real Ray, many trials (few_labels), trials on real videos (ensemble).
    large = {"driver", "driver_calibration", "few_labels", "ensemble", "faults", "storm"}
    assert scripts - large - {"card", "simulated_slots", "objectives", "fuzz"} == TINY.keys() | {"compare"}


def test_no_changed_file_is_read_as_another_one_or_ends_in_a_traceback() -> None:
    done = run("fuzz", "--minutes", "1", "--seed", "14")
    report = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, report["found"]) == (0, {}), done.stdout
    assert all(sum(counted.values()) >= 10 for counted in report["by_kind"].values()), report


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")  # as Python does it for a program
    return importlib.import_module("search")


def test_the_peers_search_what_quickstart_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks" / "peers")
    peer = importlib.import_module("quickstart")
    ours = load(PROJECT / "experiments.yaml", "quickstart")
    trial = FixedTrial({**peer.DEFAULTS, "l2_kind": "some", "l2": 1.0})
    peer.suggest(trial)
    drawn = {"model.dropout": "dropout", "optimizer.learning_rate": "learning_rate", "loss.l2.loguniform": "l2"}
    space = ours.space.distributions({**ours.space.defaults(), "loss.l2": "loguniform", "loss.l2.loguniform": 1.0})
    assert {name: trial.distributions[own] for name, own in drawn.items()} == {
        name: optuna_distribution(space[name]) for name in drawn
    }
    assert space.keys() - drawn.keys() == {"loss.l2"} and len(trial.distributions) == len(space)
    assert ours.space.defaults() == {
        "model.dropout": peer.DEFAULTS["dropout"],
        "optimizer.learning_rate": peer.DEFAULTS["learning_rate"],
        "loss.l2": "0",
    }
    settings = ours.trial_config(ours.space.defaults())
    assert settings.model == FusedMLPConfig(
        towers=dict(zip(ours.data.features, peer.TOWERS, strict=True)), hidden=peer.HIDDEN, dropout=0.45
    )
    assert tuple(ours.data.features.values()) == peer.WIDTHS and ours.data.num_classes == peer.NUM_CLASSES
    assert settings.training.batch_size == peer.BATCH_SIZE
    assert (ours.search.scheduler.grace, ours.search.scheduler.reduction) == (peer.GRACE, peer.REDUCTION)


def test_the_seconds_between_trials_are_those_of_each_place(search: ModuleType) -> None:
    one_after_the_other = [(0.0, 5.0), (5.2, 8.0), (9.0, 12.0)]
    assert search.between(one_after_the_other) == pytest.approx([0.2, 1.0])
    two_at_a_time = [(0.0, 5.0), (1.0, 4.0), (4.5, 9.0), (6.0, 7.0)]
    assert search.between(two_at_a_time) == pytest.approx([0.5, 1.0])
    the_driver_noted_the_end_late = [(0.0, 5.05), (5.0, 8.0)]
    assert search.between(the_driver_noted_the_end_late) == [0.0]


def test_the_parts_of_a_search_leave_out_no_second(search: ModuleType) -> None:
    process = search.Process(began=100.0, seconds=30.0, memory_mib=0.0)
    begun = [("imports", 101.0, 4.0), ("trials", 105.0, 20.0), ("closing", 125.0, 3.0)]
    reports = {"0": [{"time": 112.0, "metrics": {"seconds": 2.0}}], "1": [{"time": 124.0, "metrics": {"seconds": 2.0}}]}
    assert search.parts_of(process, begun, reports) == {
        "starting Python": 1.0,
        "imports": 4.0,
        "first slot": 5.0,
        "training": 14.0,
        "ending the trials": 1.0,
        "closing": 3.0,
        "ending Python": 2.0,
    }


def test_models_are_tuned_alike_and_no_finished_run_is_repeated(tmp_path: Path) -> None:
    settings = {
        "data.sample": f"{{directory: {tmp_path}, train: 200, validate: 50, shards: 1, frames: 4}}",
        "data.train": f"{tmp_path}/train*.tfrecord",
        "data.validate": f"{tmp_path}/validate*.tfrecord",
        "data.cache_folder": str(tmp_path / "cache"),
        "model": "{choice: [{kind: average_logistic}, {kind: attention, hidden: {int: [8, 64]}}]}",
        "training": "{batch_size: 64, epochs: 2, precision: fp32}",
    }
    options = [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]
    first, again = (
        run("compare", "zoo", "--trials", "2", "--state", str(tmp_path / "state"), *options) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout.splitlines()[-1])["models"]
    assert list(found) == ["average_logistic", "attention"]
    for of_model in found.values():
        assert len(of_model["gaps"]) == len(of_model["maps"]) == 3 and all(0 < gap <= 1 for gap in of_model["gaps"])
    assert len(list((tmp_path / "state").iterdir())) == 2 + 3 + 3 + 1  # a model without choices has one trial
    assert json.loads(again.stdout.splitlines()[-1])["models"] == found  # including the seconds of processor time


def test_comparing_an_experiment_with_one_model_is_refused() -> None:
    done = run("compare", "quickstart")
    assert done.returncode == 2
    assert (
        "quickstart: model must be a choice of several models" in done.stderr.splitlines()[-1]
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize("name", ["decode", "feed"])
def test_a_glob_without_matches_is_refused_in_one_sentence(name: str) -> None:
    done = run(name, "--data", "nowhere/*.tfrecord")
    assert done.returncode == 2
    assert "nowhere/*.tfrecord" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
