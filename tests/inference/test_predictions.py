"""Files of predictions: read, scored as Kaggle scored them, and compared with a model."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models import metrics
from tests.support.commands import exit_code_of, refusal_of, run_command
from tests.support.finished import FinishedSearch
from tuner.errors import ConfigError
from tuner.inference import predictions
from tuner.inference.predictions import Labels

Printed = pytest.CaptureFixture[str]

# Probabilities and labels of three videos and five classes.
P = np.array([[0.9, 0.8, 0.1, 0.2, 0.05], [0.3, 0.7, 0.6, 0.4, 0.02], [0.55, 0.15, 0.25, 0.35, 0.95]])
Y = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]])


def write(path: Path, *lines: str, header: str = "VideoId,LabelConfidencePairs") -> Path:
    path.write_text("".join(f"{line}\n" for line in (header, *lines)))
    return path


def lines_of(probabilities_NC: np.ndarray, top_k: int) -> list[str]:
    """The lines of a csv that lists the best classes of videos v0, v1, ..."""
    best_NK = np.argsort(-probabilities_NC, axis=1, kind="stable")[:, :top_k]
    pairs = [" ".join(f"{c} {row[c]:g}" for c in best) for row, best in zip(probabilities_NC, best_NK, strict=True)]
    return [f"v{video},{listed}" for video, listed in enumerate(pairs)]


def truth(labels_NC: np.ndarray) -> Labels:
    return Labels(
        ids=np.array([f"v{video}".encode() for video in range(len(labels_NC))]),
        label_offsets=np.concatenate([[0], labels_NC.sum(axis=1).cumsum()]),
        label_indices=np.nonzero(labels_NC)[1].astype(np.int32),
    )


def score(path: Path, labels_NC: np.ndarray) -> dict[str, float]:
    return predictions.score(predictions.read(path), truth(labels_NC))


# --------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(("top_k", "gap"), [(5, 0.5588675), (2, 0.3777778), (1, 0.1944444)])
def test_gap_equals_the_published_test_vectors(tmp_path: Path, top_k: int, gap: float) -> None:
    assert score(write(tmp_path / "p.csv", *lines_of(P, top_k)), Y)["gap"] == pytest.approx(gap, abs=1e-7)


def test_other_metrics_on_the_published_test_vectors(tmp_path: Path) -> None:
    found = score(write(tmp_path / "p.csv", *lines_of(P, 5)), Y)
    assert found["hit_at_1"] == found["perr"] == pytest.approx(2 / 3)
    assert found["map"] == pytest.approx(0.7083333, abs=1e-7)
    assert (found["average_num_classes"], found["num_videos"]) == (2.0, 3.0)
    assert found["precision"] == found["recall"] == pytest.approx(2 / 3)


def test_a_file_with_all_classes_has_the_metrics_of_the_scores(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shares_NC, labels_NC = random.random((200, 30)), random.random((200, 30)) < 0.1
    found = score(write(tmp_path / "p.csv", *lines_of(shares_NC.round(6), 30)), labels_NC)
    assert found["gap"] == pytest.approx(metrics.gap(shares_NC.round(6), labels_NC), rel=1e-6)
    assert found["perr"] == pytest.approx(metrics.perr(shares_NC.round(6), labels_NC), rel=1e-6)


def test_a_class_that_is_not_listed_never_counts_as_a_hit(tmp_path: Path) -> None:
    """Scored as 0, class 0 would rank second and be a hit. A label that the file does not list counts against it."""
    found = score(write(tmp_path / "p.csv", "v0,3 0.9"), np.array([[1, 0, 0, 1]]))
    assert (found["gap"], found["perr"], found["map"]) == (0.5, 0.5, 0.5)


def test_more_labels_than_predictions_find_no_further_hit(tmp_path: Path) -> None:
    """PERR looks at as many predictions as the video has labels: here at more than are listed."""
    found = score(write(tmp_path / "p.csv", "v0,1 0.9 0 0.8"), np.ones((1, 25), int))
    assert found["perr"] == 2 / 25 and found["gap"] == pytest.approx(2 / 25)


def test_probabilities_of_0_and_1_are_ranked(tmp_path: Path) -> None:
    found = score(write(tmp_path / "p.csv", "v0,2 0 1 1e-20 0 1"), np.array([[0, 0, 1]]))
    assert found["gap"] == pytest.approx(1 / 3)


def test_a_missing_video_counts_without_predictions_and_an_unknown_one_is_ignored(tmp_path: Path) -> None:
    known = score(write(tmp_path / "p.csv", *lines_of(P, 5)[:2]), Y)
    assert known["num_videos"] == 3 and known["hit_at_1"] == pytest.approx(2 / 3)
    with_stranger = score(write(tmp_path / "q.csv", *lines_of(P, 5), "stranger,4 1"), Y)
    assert with_stranger == score(write(tmp_path / "p.csv", *lines_of(P, 5)), Y)


def test_a_class_that_is_not_rated_for_a_video_is_ignored(tmp_path: Path) -> None:
    """The file lists the class first, but it counts neither as a miss nor as a hit."""

    class Rated:
        ids = np.array([b"v0:5"])
        label_offsets, label_indices = np.array([0, 1]), np.array([2], np.int32)
        rated_offsets, rated_indices = np.array([0, 2]), np.array([1, 2], np.int32)

    stored = predictions.read(write(tmp_path / "p.csv", "v0:5,0 0.9 2 0.8 1 0.7"))
    assert predictions.score(stored, Rated())["gap"] == 1


# ---------------------------------------------------------------------------------------------------------- reading


def test_every_pair_of_a_line_is_read(tmp_path: Path) -> None:
    """A published averaging script read only 25 of 50 pairs: it took half the length of a list of pairs."""
    pairs = " ".join(f"{label} {0.5 - label / 1000:g}" for label in range(50))
    stored = predictions.read(write(tmp_path / "p.csv", f"v0,{pairs}"))
    assert stored.of([b"v0"]).classes.tolist() == list(range(50))
    assert stored.of([b"v0"]).probabilities[49] == 0.451


def test_the_header_is_not_read_as_a_video_and_the_last_newline_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("VideoId,LabelConfidencePairs\nv0,1 0.5\nv1,2 0.25")
    stored = predictions.read(tmp_path / "p.csv")
    assert list(stored.rows) == [b"v0", b"v1"] and stored.of([b"v1"]).probabilities.tolist() == [0.25]


def test_videos_are_looked_up_in_any_order(tmp_path: Path) -> None:
    stored = predictions.read(write(tmp_path / "p.csv", "a,1 0.5 2 0.25", "b,", "c,3 0.75"))
    listed = stored.of([b"c", b"x", b"a", b"b", b"a"])
    assert listed.videos.tolist() == [0, 2, 2, 4, 4] and listed.classes.tolist() == [3, 1, 2, 1, 2]


def test_a_written_file_reads_back_equal(finished_search: FinishedSearch, exported: Path, tmp_path: Path) -> None:
    for name in ("p.csv", "p.csv.gz"):
        output = tmp_path / name
        run_command(
            "tuner.predict",
            str(exported),
            "--data",
            finished_search.validate,
            "--output",
            str(output),
            "--device",
            "cpu",
        )
    plain, compressed = (predictions.read(tmp_path / name) for name in ("p.csv", "p.csv.gz"))
    assert plain.rows == compressed.rows and set(plain.rows) == set(finished_search.data.validate.ids.tolist())
    assert np.array_equal(plain.probabilities, compressed.probabilities) and len(plain.classes) == 150 * 12


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["v0,1 0.5 2"], "p.csv:2: the last class, 2, has no probability: the line is cut short"),
        (["v0,1 0.5", "v1,1 x"], "p.csv:3: must list pairs of a class and its probability"),
        (["v0,1.5 0.5"], "p.csv:2: must list pairs of a class and its probability"),
        (["v0,1 1.5"], "p.csv:2: a class must be in [0, 16,777,216) and a probability in [0, 1], but got '1 1.5'"),
        (["v0,1 nan"], "p.csv:2: a class must be in [0, 16,777,216) and a probability in [0, 1]"),
        (["v0,-1 0.5"], "p.csv:2: must list pairs of a class and its probability: '-1' is no class"),
        (["v0,-0 0.5"], "p.csv:2: must list pairs of a class and its probability: '-0' is no class"),
        (["v0,3000000000 0.5"], "p.csv:2: a class must be in [0, 16,777,216)"),
        (["v0,2147483647 0.5"], "p.csv:2: a class must be in [0, 16,777,216)"),
        ([f"v0,{'9' * 5000} 0.5"], "p.csv:2: must list pairs of a class and its probability: '999"),
        (["v0,1_0 0.5"], "p.csv:2: must list pairs of a class and its probability: '1_0' is no class"),
        (["v0,\u0663 0.5"], "p.csv:2: must list pairs of a class and its probability"),
        (["v0,1 0_1"], "p.csv:2: must list pairs of a class and its probability: '0_1' is no number"),
        (["v0,1 0.5 1 0.4"], "p.csv:2: a class is listed twice for video v0"),
        (["v0,1 0.5", "v0,1 0.5"], "p.csv:3: video v0 is listed a second time"),
        (["v0,1 0.5,7"], "p.csv:2: must have 2 fields, but got 3"),
    ],
)
def test_an_invalid_line_is_refused_with_its_number(tmp_path: Path, lines: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        predictions.read(write(tmp_path / "p.csv", *lines))
    assert told in str(error.value)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must begin with the line VideoId,LabelConfidencePairs, but got 'Class,Seg"):
        predictions.read(write(tmp_path / "p.csv", "1,v0:5", header="Class,Segments"))
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"VideoId,LabelConfidencePairs\n" + b"v0,1 0.5\n" * 99)[:-20])
    (tmp_path / "plain.csv.gz").write_bytes(b"VideoId,")
    for name in ("torn.csv.gz", "plain.csv.gz", "nowhere.csv"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as predictions"):
            predictions.read(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def written(finished_search: FinishedSearch, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of tuner.predict for the validation videos, with five classes for each."""
    output = tmp_path_factory.mktemp("predictions") / "stored.csv"
    command = [str(exported), "--data", finished_search.validate, "--output", str(output), "--top-k", "5"]
    run_command("tuner.predict", *command, "--device", "cpu")
    return output.read_text()


@pytest.fixture
def stored(written: str, tmp_path: Path) -> Path:
    """A copy of the file that a test may change."""
    (tmp_path / "stored.csv").write_text(written)
    return tmp_path / "stored.csv"


def run(*arguments: str | Path) -> int:
    return exit_code_of("tuner.evaluate", *arguments, "--device", "cpu")


def test_predictions_of_the_model_agree_with_it(
    finished_search: FinishedSearch, exported: Path, stored: Path, capsys: Printed
) -> None:
    capsys.readouterr()
    assert run(exported, "--data", finished_search.validate, "--predictions", stored) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert (
        "stored.csv agrees with the model: 150 videos compared, the largest difference of a probability is" in printed
    )
    assert report["gap"] == finished_search.best.score
    of_file = report["predictions"]
    assert (
        of_file["largest_difference"] < 1e-6 and of_file["gap"] < report["gap"]
    )  # it lists only five of twelve classes
    assert of_file["missing"] == of_file["unknown"] == of_file["differing"] == 0


def change(path: Path, row: int, edit: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines()
    lines[row] = edit(lines[row])
    path.write_text("\n".join(line for line in lines if line) + "\n")


def lower_the_second(line: str) -> str:
    id, pairs = line.split(",")
    listed = pairs.split()
    listed[3] = "0"
    return f"{id},{' '.join(listed)}"


def half_of_the_list(line: str) -> str:
    id, pairs = line.split(",")
    return f"{id},{' '.join(pairs.split()[-4:])}"


@pytest.mark.parametrize("edit", [lower_the_second, half_of_the_list, lambda line: line.split(",")[0] + ","])
def test_a_changed_video_is_named_with_both_probabilities(
    finished_search: FinishedSearch, exported: Path, stored: Path, capsys: Printed, edit: Callable[[str], str]
) -> None:
    id = stored.read_text().splitlines()[7].split(",")[0]
    change(stored, 7, edit)
    capsys.readouterr()
    assert run(exported, "--data", finished_search.validate, "--predictions", stored) == 1
    printed = capsys.readouterr().out
    assert "stored.csv does not agree with the model: 150 videos compared, 1 differ by more than 0.0001" in printed
    assert f"  video {id}, class " in printed and " in the file, 0." in printed
    assert json.loads(printed.splitlines()[-1])["predictions"]["differing"] == 1


def test_missing_and_unknown_videos_are_named(
    finished_search: FinishedSearch, exported: Path, stored: Path, capsys: Printed
) -> None:
    gone = stored.read_text().splitlines()[3].split(",")[0]
    change(stored, 3, lambda line: line.replace(gone, "stranger"))
    capsys.readouterr()
    assert run(exported, "--data", finished_search.validate, "--predictions", stored) == 1
    printed = capsys.readouterr().out
    assert "149 videos compared, 0 differ by more than 0.0001, 1 missing, 1 unknown" in printed
    assert f"  missing from the file: {gone}\n  not in the shards: stranger\n" in printed


def test_the_tolerance_of_a_comparison_can_be_set(
    finished_search: FinishedSearch, exported: Path, stored: Path
) -> None:
    text = stored.read_text().splitlines()
    rounded = [
        line.split(",")[0]
        + ","
        + " ".join(
            word if position % 2 == 0 else f"{float(word):.2f}"
            for position, word in enumerate(line.split(",")[1].split())
        )
        for line in text[1:]
    ]
    stored.write_text("\n".join([text[0], *rounded]) + "\n")
    command = [exported, "--data", finished_search.validate, "--predictions", stored]
    assert run(*command) == 1
    assert run(*command, "--tolerance", "0.0051") == 0


def test_ids_printed_as_python_bytes_are_unknown(
    finished_search: FinishedSearch, exported: Path, stored: Path, capsys: Printed
) -> None:
    """The writer of google/youtube-8m printed ids as b'...'."""
    lines = stored.read_text().splitlines()
    stored.write_text("\n".join([lines[0], *(f"b'{line.replace(',', chr(39) + ',', 1)}" for line in lines[1:])]) + "\n")
    assert run(exported, "--data", finished_search.validate, "--predictions", stored) == 2
    assert "stored.csv: contains none of the 150 videos of the shards, such as" in capsys.readouterr().err


def test_a_file_is_scored_without_a_model(finished_search: FinishedSearch, stored: Path, capsys: Printed) -> None:
    capsys.readouterr()
    assert run("--data", finished_search.validate, "--predictions", stored) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    of_file = json.loads(last)
    assert of_file == predictions.score(predictions.read(stored), finished_search.data.validate)
    assert [line.split()[0] for line in lines] == list(of_file)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "give MODEL_DIR, or --predictions FILE"), (["m", "--tolerance", "1"], "--tolerance: must be a number in")],
)
def test_missing_or_unusable_arguments_are_refused(capsys: Printed, arguments: list[str], told: str) -> None:
    assert run(*arguments, "--data", "x") == 2
    assert told in capsys.readouterr().err


def test_an_error_is_one_sentence(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path, capsys: Printed
) -> None:
    other = write(tmp_path / "other.csv", "v0,99 0.5")
    for arguments, told in (
        ((exported, "--predictions", other), "other.csv: names class 99, but the model has only 12"),
        ((exported, "--predictions", tmp_path / "nowhere.csv"), "nowhere.csv: cannot be read as predictions"),
    ):
        command = ("tuner.evaluate", *arguments, "--data", finished_search.validate)
        assert told in refusal_of(capsys, *command, prints_before=True)
