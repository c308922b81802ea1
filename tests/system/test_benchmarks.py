"""Every benchmark runs from the project's root and prints its comparison and one JSON object in the last line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import PROJECT

pytestmark = pytest.mark.bench

TINY = {
    "decode": ["--videos", "200", "--rounds", "1"],
    "feed": ["--videos", "200", "--rounds", "1", "--batch-size", "64"],
    "gap": ["--videos", "1024", "--rounds", "1", "--stream", "2048"],
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
    large = {"trials", "driver", "driver_calibration", "few_labels", "ensemble", "faults", "storm"}
    assert scripts - large - {"card"} == TINY.keys() | {"compare"}


def test_models_are_tuned_alike_and_no_finished_run_is_repeated(tmp_path: Path) -> None:
    settings = {
        "data.sample": f"{{directory: {tmp_path}, train: 200, validate: 50, shards: 1, frames: 4}}",
        "data.train": f"{tmp_path}/train*.tfrecord",
        "data.validate": f"{tmp_path}/validate*.tfrecord",
        "data.cache": str(tmp_path / "cache"),
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
