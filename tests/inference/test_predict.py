"""tuner.predict: every video once, in order, best class first; a complete file or none."""

import csv
import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.cache.recipe import find_shards
from data.frames import decode
from models import metrics
from tests.support.commands import exit_code_of, refusal_of, run_command
from tests.support.finished import NAMES, FinishedSearch, videos, write_shard
from tuner.errors import TunerError
from tuner.export.loader import load_model
from tuner.inference.predict import PredictedShard, write_csv
from tuner.inference.ranking import best_classes

CPU = torch.device("cpu")


def run(exported: Path, output: Path, *more: str, data: str | Sequence[str]) -> list[list[str]]:
    """Run the command and read the rows of the csv that it writes, without the header."""
    patterns = [data] if isinstance(data, str) else data
    run_command("tuner.predict", exported, "--data", *patterns, "--output", output, "--device", "cpu", *more)
    content = output.read_bytes()
    text = (gzip.decompress(content) if output.suffix == ".gz" else content).decode()
    header, *rows = csv.reader(text.splitlines())
    assert header == ["VideoId", "LabelConfidencePairs"]
    return rows


def pairs(row: list[str]) -> tuple[list[int], list[float]]:
    values = row[1].split(" ")
    return [int(label) for label in values[::2]], [float(probability) for probability in values[1::2]]


def test_every_video_is_written_once_in_order_with_the_ranking_of_the_model(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    rows = run(exported, tmp_path / "out.csv", data=str(finished_search.folder / "shards" / "t*"))
    loaded = load_model(exported, CPU)
    first = 0
    for shard in find_shards(str(finished_search.folder / "shards" / "t*")):
        decoded = decode(shard, loaded.schema)
        with torch.inference_mode():
            logits_NC = loaded.model(torch.from_numpy(decoded.features_ND.astype(np.float16)))
        of_shard = rows[first : first + len(decoded.ids)]
        assert [row[0].encode() for row in of_shard] == decoded.ids.tolist()
        for row, logits_C in zip(of_shard, logits_NC, strict=True):
            labels, probabilities = pairs(row)
            assert labels[0] == int(logits_C.argmax()) and sorted(labels) == list(range(12))
            assert probabilities == pytest.approx(logits_C.sigmoid()[labels].tolist(), rel=1e-4)
            assert probabilities == sorted(probabilities, reverse=True)
        first += len(decoded.ids)
    assert first == len(rows) == 450


def test_with_names_each_prediction_is_a_row_with_the_name_of_its_class(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    output, data = tmp_path / "named.csv", finished_search.validate
    run_command("tuner.predict", exported, "--data", data, "--output", output, "--top-k", "2", "--names")
    with output.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    expected = []
    for row in run(exported, tmp_path / "plain.csv", "--top-k", "2", data=data):
        expected += [(row[0], label, NAMES[label], probability) for label, probability in zip(*pairs(row), strict=True)]
    assert [(row["VideoId"], int(row["Index"]), row["Name"], float(row["Probability"])) for row in found] == expected
    assert len(found) == 300


def test_names_that_the_model_lacks_or_the_output_cannot_hold_are_refused(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = tmp_path / "nameless"
    shutil.copytree(exported, nameless)
    (nameless / "classes.csv").unlink()
    sums = (nameless / "SHA256SUMS").read_text()
    (nameless / "SHA256SUMS").write_text("".join(s for s in sums.splitlines(True) if "classes.csv" not in s))
    arguments = ["--data", finished_search.validate, "--names", "--output"]
    assert "has no classes.csv" in refusal_of(capsys, "tuner.predict", nameless, *arguments, tmp_path / "out.csv")
    for more in ([tmp_path / "out.safetensors"], [tmp_path / "out.csv", "--segments"]):
        assert exit_code_of("tuner.predict", exported, *arguments, *more) == 2
        assert "--names writes a csv of classes for each video" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [nameless]


def test_the_csv_gives_the_gap_of_the_trial(finished_search: FinishedSearch, exported: Path, tmp_path: Path) -> None:
    rows = run(exported, tmp_path / "out.csv", data=finished_search.validate)
    scores_NC, labels_NC = np.zeros((150, 12)), np.zeros((150, 12))
    cache = finished_search.data.validate
    for video, row in enumerate(rows):
        labels, probabilities = pairs(row)
        scores_NC[video, labels] = probabilities
        labels_NC[video, cache.label_indices[cache.label_offsets[video] : cache.label_offsets[video + 1]]] = 1
    assert metrics.gap(scores_NC, labels_NC) == pytest.approx(finished_search.best.score, abs=1e-4)


def test_a_probability_has_six_significant_digits(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    for row in run(exported, tmp_path / "out.csv", data=finished_search.validate):
        assert re.fullmatch(r"(\d+ (0\.0*\d{1,6}|1|\d(\.\d{1,5})?e-\d\d)( |$))+", row[1])


def test_labels_are_not_needed(exported: Path, tmp_path: Path) -> None:
    here = videos(b"one", b"two", b"three")
    without = run(exported, tmp_path / "a.csv", data=write_shard(tmp_path / "a.tfrecord", here))
    with_labels = run(exported, tmp_path / "b.csv", data=write_shard(tmp_path / "b.tfrecord", here, labels=True))
    assert [row[0] for row in without] == ["one", "two", "three"]
    assert without == with_labels


def test_ids_with_commas_or_quotes_are_escaped_in_the_csv(exported: Path, tmp_path: Path) -> None:
    ids = [b"a,b", b'say "hi"', b" ", "\u00e9".encode(), b"\xff\xfe"]
    shard = write_shard(tmp_path / "a.tfrecord", videos(*ids))
    run_command("tuner.predict", exported, "--data", shard, "--output", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row[0].encode(errors="surrogateescape") for row in list(csv.reader(file))[1:]] == ids
    assert b'\n"a,b",' in (tmp_path / "out.csv").read_bytes()


def test_only_the_top_k_classes_are_written(exported: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tfrecord", videos(b"one", b"two"))
    everything = run(exported, tmp_path / "all.csv", "--top-k", "99", data=shard)
    three = run(exported, tmp_path / "three.csv", "--top-k", "3", data=shard)
    assert [len(pairs(row)[0]) for row in everything + three] == [12, 12, 3, 3]
    assert [pairs(row)[0] for row in three] == [pairs(row)[0][:3] for row in everything]


def test_the_file_does_not_depend_on_the_batch_size_or_the_shards(exported: Path, tmp_path: Path) -> None:
    here = videos(*(f"v{number}".encode() for number in range(20)))
    one = write_shard(tmp_path / "one.tfrecord", here)
    for index, first in enumerate((0, 7, 7, 13)):
        last = (7, 7, 13, 20)[index]
        write_shard(tmp_path / f"part{index}.tfrecord", here[first:last])  # one of them is empty
    whole = run(exported, tmp_path / "a.csv", data=one)
    parts = run(exported, tmp_path / "b.csv", "--batch-size", "3", data=str(tmp_path / "part*"))
    assert [row[0] for row in parts] == [row[0] for row in whole]
    for left, right in zip(map(pairs, parts), map(pairs, whole), strict=True):
        assert left[0] == right[0] and left[1] == pytest.approx(right[1], rel=1e-4)


def test_shards_without_videos_give_a_file_with_only_a_header(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.tfrecord").touch()
    assert run(exported, tmp_path / "out.csv", data=str(tmp_path / "empty.tfrecord")) == []


def test_a_name_that_ends_in_gz_is_compressed(finished_search: FinishedSearch, exported: Path, tmp_path: Path) -> None:
    plain = run(exported, tmp_path / "out.csv", data=finished_search.validate)
    assert run(exported, tmp_path / "out.csv.gz", data=finished_search.validate) == plain
    assert (tmp_path / "out.csv.gz").stat().st_size < (tmp_path / "out.csv").stat().st_size


@settings(deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 30)),
        elements=st.sampled_from([-np.inf, -1e30, -2.5, -1.0, -0.0, 0.0, 1e-40, 0.5, 7.0, np.inf])
        | st.floats(-100, 100, width=32),
    ),
    st.integers(1, 40),
)
def test_the_top_classes_equal_those_of_a_stable_sort(logits_BC: np.ndarray, top_k: int) -> None:
    classes_BK, probabilities_BK = best_classes(torch.from_numpy(logits_BC), top_k)
    expected = np.argsort(-logits_BC, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(classes_BK.numpy(), expected)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-np.take_along_axis(logits_BC, expected, 1).astype(np.float64)))
    np.testing.assert_allclose(probabilities_BK.numpy(), sigmoid, rtol=1e-12)


def test_of_equal_bf16_logits_the_lower_class_comes_first() -> None:
    classes_BK, _ = best_classes(torch.ones(1, 100, dtype=torch.bfloat16), 3)
    assert classes_BK.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--classes", "ids.csv"], "--classes needs --segments"),
        (["--per-class", "5"], "--per-class needs --segments"),
        (["--segments", "--top-k", "5"], "--segments writes a csv of segments for each class"),
        (["--segments", "--per-class", "0"], "must be a whole number from 1 to 16,777,216, but got '0'"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    exported: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert exit_code_of("tuner.predict", exported, "--data", "x", "--output", "out.csv", *arguments) == 2
    assert told in capsys.readouterr().err


def test_segments_are_refused_for_a_video_level_model(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "a.tfrecord", videos(b"one"))
    command = (exported, "--data", shard, "--output", tmp_path / "s.csv", "--segments")
    assert "--segments: the model takes features of whole videos" in refusal_of(capsys, "tuner.predict", *command)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfrecord"]


def test_two_videos_with_one_id_are_refused_when_the_predictions_are_written(tmp_path: Path) -> None:
    shard = PredictedShard([b"a"], np.zeros((1, 1), np.int64), np.zeros((1, 1)))
    with pytest.raises(TunerError, match="two videos have the id a"):
        write_csv(tmp_path / "out.csv", [shard, shard])
