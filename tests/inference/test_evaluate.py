"""Evaluation: the metrics of a model on shards, from Python and from the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tfrecord.writer import TFRecordWriter

from data.batches import Batches
from models.metrics.registry import METRICS, METRICS_OF_LOGITS
from tests.support.commands import refusal_of, run_command
from tests.support.finished import FinishedSearch
from tuner.inference import scorecard
from tuner.inference.meanings import MEANINGS
from tuner.training.evaluation import evaluate

KEYS = {"gap", "hit_at_1", "perr", "map", "average_num_classes", "precision", "recall", "loss", "num_videos"}
KEYS |= {"calibration_error"}
WHOLE = KEYS | {"gap_at_1", "gap_at_5", "gap_at_10", "map_all"}  # of a split, once


def test_the_metrics_do_not_depend_on_the_batch_size(finished_search: FinishedSearch) -> None:
    network = finished_search.load_best()
    one, many = (
        evaluate(network, Batches(finished_search.data.validate, batch_size=size, shuffle=False), "fp32")
        for size in (1000, 7)
    )
    assert one.keys() == KEYS
    assert one == pytest.approx(many, rel=1e-5)
    assert one["num_videos"] == 150


def test_evaluation_turns_dropout_off_and_does_not_change_the_model(finished_search: FinishedSearch) -> None:
    network = finished_search.load_best().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = Batches(finished_search.data.validate, batch_size=50, shuffle=False)
    assert evaluate(network, batches, "fp32") == evaluate(network, batches, "fp32")
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_last_line_is_json_with_the_metrics_of_the_trial(
    finished_search: FinishedSearch, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("tuner.evaluate", exported, "--data", finished_search.validate, "--device", "cpu")
    *lines, last = capsys.readouterr().out.splitlines()
    metrics = json.loads(last)
    assert metrics.keys() == WHOLE
    assert metrics["gap"] == finished_search.best.score
    assert [line.split()[0] for line in lines] == list(metrics)


def test_every_metric_is_explained(
    finished_search: FinishedSearch, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("tuner.evaluate", exported, "--data", finished_search.validate, "--device", "cpu")
    *lines, _ = capsys.readouterr().out.splitlines()
    said = {name: words for name, _, words in (line.split(maxsplit=2) for line in lines)}
    assert "its 20 best classes only" in said["map"] and "every video counts" in said["map_all"]
    assert {*METRICS, *METRICS_OF_LOGITS} <= MEANINGS.keys()


def test_with_json_stdout_is_one_json_object(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, stored = ["--data", finished_search.validate], tmp_path / "stored.csv"
    run_command("tuner.predict", exported, *shards, "--output", stored, "--device", "cpu")
    for arguments in ([exported], ["--predictions", stored], [exported, "--predictions", stored]):
        capsys.readouterr()
        run_command("tuner.evaluate", *arguments, *shards, "--device", "cpu", "--json")
        printed = capsys.readouterr()
        assert "gap" in json.loads(printed.out)
        assert "hit_at_1" in printed.err and ("agrees with the model" in printed.err) is (len(arguments) == 3)


def test_the_metrics_of_each_class_are_written_to_a_file(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    table = tmp_path / "classes.csv"
    run_command(
        "tuner.evaluate", str(exported), "--data", finished_search.validate, "--device", "cpu", "--classes", str(table)
    )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = finished_search.data.validate.label_indices
    assert [int(row["class"]) for row in rows] == list(range(finished_search.data.sizes.num_classes))
    assert [int(row["positives"]) for row in rows] == [int((labels == c).sum()) for c in range(len(rows))]
    assert all((row["average_precision"] == "") is (row["positives"] == "0") for row in rows)
    (batch,) = Batches(finished_search.data.validate, batch_size=150, shuffle=False).epoch(0)
    with torch.inference_mode():
        probabilities = finished_search.load_best()(*batch.inputs).sigmoid().mean(dim=0)
    assert [float(row["mean_probability"]) for row in rows] == pytest.approx(probabilities.tolist(), rel=1e-3)


def test_the_metrics_of_classes_in_a_large_split_come_from_a_sample_of_its_videos(
    finished_search: FinishedSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorecard, "CELLS", 40 * finished_search.data.sizes.num_classes)
    cache = finished_search.data.validate
    metrics, classes = scorecard.score(finished_search.load_best(), cache, "fp32", torch.device("cpu"))
    assert metrics["num_videos"] == 150 and set(classes.rated_C) == {40}


def test_bf16_gives_nearly_the_same_gap_as_fp32(finished_search: FinishedSearch) -> None:
    batches = Batches(finished_search.data.validate, batch_size=50, shuffle=False)
    exact, half = (evaluate(finished_search.load_best(), batches, precision)["gap"] for precision in ("fp32", "bf16"))
    assert half == pytest.approx(exact, abs=0.02)


def test_shards_without_videos_are_refused(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.tfrecord").touch()
    told = refusal_of(capsys, "tuner.evaluate", exported, "--data", tmp_path / "empty.tfrecord")
    assert "empty.tfrecord: the shards contain no video" in told


def test_shards_without_labels_are_refused(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = TFRecordWriter(str(tmp_path / "test.tfrecord"))
    writer.write({"id": (b"a", "byte"), "mean_rgb": ([0.0] * 24, "float"), "mean_audio": ([0.0] * 8, "float")})
    writer.close()
    told = refusal_of(capsys, "tuner.evaluate", exported, "--data", tmp_path / "*.tfrecord")
    assert "test.tfrecord: record at byte 0, key 'labels': is missing" in told


def test_credentials_on_the_command_line_are_refused(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal_of(capsys, "tuner.evaluate", exported, "--data", "s3://AKIA:hunter2@bucket/validate*")
    assert said.startswith("--data: s3://***@bucket/validate* holds credentials") and "hunter2" not in said
