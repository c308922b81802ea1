"""Ranked segments: the best ones of each class, in bounded memory, in Kaggle's format."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tfrecord.writer import TFRecordWriter
from torch import Tensor, nn

from data.errors import ShardError
from tests.support.commands import refusal_of, run_command
from tuner.errors import ConfigError, TunerError
from tuner.inference import segments
from tuner.inference.segments import Ranking, Segment


def tuples(ranking: Ranking) -> dict[int, list[tuple[bytes, int]]]:
    return {label: [tuple(segment) for segment in listed] for label, listed in ranking.rows()}


def of(video: bytes, *starts: int) -> list[Segment]:
    return [Segment(video, start) for start in starts]


def test_the_segments_of_a_class_are_sorted_best_first() -> None:
    ranking = Ranking([2, 0])
    ranking.add(of(b"a", 0, 5), torch.tensor([[1.0, 9.0, -3.0], [2.0, 9.0, -1.0]]))
    ranking.add(of(b"b", 0), torch.tensor([[1.5, 9.0, -2.0]]))
    assert tuples(ranking) == {2: [(b"a", 5), (b"b", 0), (b"a", 0)], 0: [(b"a", 5), (b"b", 0), (b"a", 0)]}


def test_of_equal_scores_the_earlier_segment_comes_first() -> None:
    ranking = Ranking([0])
    ranking.add(of(b"z", 10, 5), torch.tensor([[0.0], [-0.0]]))
    ranking.add(of(b"a", 0), torch.tensor([[0.0]]))
    assert tuples(ranking)[0] == [(b"z", 10), (b"z", 5), (b"a", 0)]


@pytest.mark.parametrize("step", [1, 7, 5000])
def test_the_ranking_of_a_long_stream_equals_a_stable_sort(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More segments are added than the ranking holds, in batches smaller and larger than its spare space."""
    monkeypatch.setattr(segments, "MIN_SPARE", 8)
    scores_SC = np.random.default_rng(0).integers(-50, 50, (900, 4)).astype(np.float32) / 7
    names = [Segment(f"v{number // 60}".encode(), number % 60 * 5) for number in range(900)]
    ranking = Ranking([0, 3], per_class=40)
    for first in range(0, 900, step):
        ranking.add(names[first : first + step], torch.from_numpy(scores_SC[first : first + step]))
    for label, listed in ranking.rows():
        assert listed == [names[row] for row in np.argsort(-scores_SC[:, label], kind="stable")[:40]]
    assert ranking._keys_KN.shape == (2, 50)


def test_scores_of_any_size_and_sign_are_ranked() -> None:
    scores = torch.tensor([-torch.inf, -1e30, -2.5, -1e-40, 0.0, 1e-40, 0.25, 3.0, 1e30, torch.inf])
    ranking = Ranking([0])
    ranking.add(of(b"v", *range(10)), scores[:, None])
    assert [start for _, start in tuples(ranking)[0]] == list(range(9, -1, -1))


def test_the_scores_of_a_frame_level_model_are_ranked(tmp_path: Path) -> None:
    """The model gives a score for each class and segment, as every frame-level model does."""

    class Mean(nn.Module):
        def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
            return (frames_BTD.float() * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)

    frames_TD = torch.tensor([[1, 9], [1, 9], [1, 9], [1, 9], [1, 9], [5, 0], [7, 0]], dtype=torch.uint8)
    windows_STD = torch.stack([frames_TD[:5], torch.cat([frames_TD[5:], torch.zeros(3, 2, dtype=torch.uint8)])])
    mask_ST = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    ranking = Ranking([0, 1])
    ranking.add(of(b"v", 0, 5), Mean()(windows_STD, mask_ST))
    segments.write(tmp_path / "s.csv", ranking)
    assert (tmp_path / "s.csv").read_text() == "Class,Segments\n0,v:5 v:0\n1,v:0 v:5\n"


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_a_written_file_reads_back_equal(tmp_path: Path, name: str) -> None:
    ids = [b"u93s", b"2vab", "\u00e9:x".encode(), b"\xff"]
    ranking = Ranking([7, 3], per_class=100_000)
    for id in ids:
        ranking.add(of(id, 0, 5), torch.rand(2, 8))
    segments.write(tmp_path / name, ranking)
    assert segments.read(tmp_path / name) == dict(ranking.rows())


def test_ids_are_text_and_lines_end_with_an_id(tmp_path: Path) -> None:
    """google/youtube-8m printed bytes as b'..' and kept the newline of the last id when it read the file."""
    ranking = Ranking([0])
    ranking.add(of(b"u93s", 0, 15), torch.tensor([[0.0], [1.0]]))
    segments.write(tmp_path / "s.csv", ranking)
    assert (tmp_path / "s.csv").read_bytes() == b"Class,Segments\n0,u93s:15 u93s:0\n"
    assert segments.read(tmp_path / "s.csv")[0][-1] == Segment(b"u93s", 0)


def test_the_header_is_not_read_as_a_class_and_a_class_may_be_empty(tmp_path: Path) -> None:
    """google/youtube-8m reads the header as a class and fails."""
    (tmp_path / "s.csv").write_text("Class,Segments\n3,\n5,a:0")
    assert segments.read(tmp_path / "s.csv") == {3: [], 5: [Segment(b"a", 0)]}


def test_a_class_with_many_segments_is_one_line(tmp_path: Path) -> None:
    """The line is longer than a field of the csv module may be."""
    ranking = Ranking([0])
    ranking.add(of(b"abcdefgh", *range(20_000)), torch.arange(20_000.0)[:, None])
    segments.write(tmp_path / "s.csv", ranking)
    listed = segments.read(tmp_path / "s.csv")[0]
    assert len(listed) == 20_000 and listed[0].start == 19_999


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("VideoId,LabelConfidencePairs\n", "s.csv: must begin with the line Class,Segments, but got 'VideoId,Lab"),
        ("", "s.csv: must begin with the line Class,Segments, but got ''"),
        ("Class,Segments\n1,a:0\nx,a:0\n", "s.csv:3: must begin with a class and a comma, but got 'x'"),
        (f"Class,Segments\n{'9' * 5000},a:0\n", "s.csv:2: must begin with a class and a comma, but got '999"),
        ("Class,Segments\n\u0663,a:0\n", "s.csv:2: must begin with a class and a comma, but got '\u0663'"),
        ("Class,Segments\n1\n", "s.csv:2: must begin with a class and a comma, but got '1'"),
        ("Class,Segments\n1,a:0\n1,b:0\n", "s.csv:3: must begin with a class and a comma, but got '1' a second time"),
        ("Class,Segments\n1,a:0 b\n", "s.csv:2: a segment must be video:start, as in u93s:15, but got 'b'"),
        ("Class,Segments\n1,a:x\n", "s.csv:2: a segment must be video:start"),
    ],
)
def test_an_invalid_file_is_refused_with_the_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ConfigError) as error:
        segments.read(tmp_path / "s.csv")
    assert told in str(error.value)


def test_a_missing_or_incomplete_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"Class,Segments\n" + b"1,a:0\n")[:-9])
    for name in ("torn.csv.gz", "nowhere.csv"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as ranked segments"):
            segments.read(tmp_path / name)


# ----------------------------------------------------------------------------------------------------- the score


def write_ratings(path: Path, ratings: dict[bytes, list[tuple[int, int, float]]]) -> Path:
    """Write records with ratings (start, class, score); they need no frames."""
    writer = TFRecordWriter(str(path))
    for video, rated in ratings.items():
        starts, classes, scores = (list(column) for column in zip(*rated, strict=True))
        writer.write(
            {
                "id": (video, "byte"),
                "segment_start_times": (starts, "int"),
                "segment_labels": (classes, "int"),
                "segment_scores": (scores, "float"),
            }
        )
    writer.close()
    return path


def test_a_file_is_scored_with_the_ratings_of_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of google/youtube-8m: the rated ranking has labels 1, 0, 1, 0, 0, and 3 positives."""
    rated = {
        b"a": [(0, 7, 1.0), (5, 7, 0.0), (10, 7, 1.0), (15, 7, 0.0)],
        b"b": [(0, 7, 0.0), (5, 7, 1.0), (5, 2, 0.0)],
    }
    shard = write_ratings(tmp_path / "v.tfrecord", rated)
    (tmp_path / "s.csv").write_text("Class,Segments\n7,a:0 x:5 a:5 b:10 a:10 a:15 b:0\n3,a:0\n")
    run_command("tuner.evaluate", "--data", shard, "--predictions", tmp_path / "s.csv")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["map_at_k"] == pytest.approx(0.5555556, abs=1e-7)
    assert found == {"map_at_k": found["map_at_k"], "num_classes": 1, "num_positives": 3, "num_rated": 7}


def test_ranked_segments_and_a_model_are_refused_together(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.csv").write_text("Class,Segments\n7,a:0\n")
    told = refusal_of(capsys, "tuner.evaluate", exported, "--data", "x", "--predictions", tmp_path / "s.csv")
    assert "ranked segments are scored without a model: omit MODEL_DIR" in told


def test_records_without_ratings_are_refused(tmp_path: Path) -> None:
    writer = TFRecordWriter(str(tmp_path / "v.tfrecord"))
    writer.write({"id": (b"a", "byte"), "labels": ([1], "int")})
    writer.close()
    with pytest.raises(ShardError, match="'segment_start_times': is missing: the record has no rated segments"):
        segments.ratings_of([str(tmp_path / "v.tfrecord")])


def test_ids_with_spaces_are_refused_when_the_ranking_is_written(tmp_path: Path) -> None:
    ranking = segments.Ranking([0], 1)
    ranking.add([segments.Segment(b"a b", 0), segments.Segment(b"c", 5)], torch.zeros(2, 1))
    with pytest.raises(TunerError, match=r"1 ids hold some: 'a b'"):
        segments.write(tmp_path / "out.csv", ranking)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("id", [b" a", b"a ", "\u00a0a".encode(), b"a\tb", b"a\n", b""])
def test_ids_of_which_a_reader_would_lose_a_part_are_refused(tmp_path: Path, id: bytes) -> None:
    ranking = segments.Ranking([0], 1)
    ranking.add([segments.Segment(id, 0)], torch.zeros(1, 1))
    with pytest.raises(TunerError, match="1 ids hold some: "):
        segments.write(tmp_path / "out.csv", ranking)


@pytest.mark.parametrize("between", [[], [segments.Segment(b"b", 0)]], ids=["one after the other", "apart"])
def test_two_records_with_one_id_are_refused_when_the_ranking_is_written(
    tmp_path: Path, between: list[segments.Segment]
) -> None:
    ranking = segments.Ranking([0], 9)
    twice = [segments.Segment(b"a", 0), segments.Segment(b"a", 5)]
    for added in (twice, between, twice):
        ranking.add(added, torch.zeros(len(added), 1))
    with pytest.raises(TunerError, match=r"1 videos were scored twice: two records have the id 'a'"):
        segments.write(tmp_path / "out.csv", ranking)
    assert not (tmp_path / "out.csv").exists()
