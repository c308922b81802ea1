"""tuner.predict and tuner.embed write a complete file or none, and refuse what they cannot do in one sentence."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from data.cache.recipe import find_shards
from tests.support.commands import refusal_of
from tests.support.finished import FinishedSearch, videos, write_shard


class Command(NamedTuple):
    module: str
    output: str  # the name of a file that it writes


@pytest.fixture(
    params=[Command("tuner.predict", "out.csv"), Command("tuner.embed", "out.parquet")], ids=["predict", "embed"]
)
def command(request: pytest.FixtureRequest) -> Command:
    return request.param


def refused(capsys: pytest.CaptureFixture[str], command: Command, *arguments: str | Path) -> str:
    """Run the command, which must refuse its arguments; return its sentence."""
    return refusal_of(capsys, command.module, *arguments)


@pytest.mark.parametrize("there", [None, "yesterday's"])
def test_a_damaged_shard_leaves_no_incomplete_file(
    command: Command,
    finished_search: FinishedSearch,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    there: str | None,
) -> None:
    for shard in find_shards(finished_search.validate):
        shutil.copy(shard, tmp_path)
    (tmp_path / "validate9.tfrecord").write_bytes(Path(shard).read_bytes()[:-5])
    output = tmp_path / "out" / command.output
    output.parent.mkdir()
    if there:
        output.write_text(there)
    told = refused(capsys, command, exported, "--data", tmp_path / "validate*.tfrecord", "--output", output)
    assert "validate9.tfrecord: record at byte" in told and "cut short" in told
    assert [path.read_text() for path in output.parent.iterdir()] == ([there] if there else [])


def test_a_feature_value_outside_the_range_of_float16_is_named(
    command: Command, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features_D = np.zeros(32)
    features_D[3] = 1e6
    shard = write_shard(tmp_path / "a.tfrecord", [*videos(b"fine"), (b"huge", features_D)])
    told = refused(capsys, command, exported, "--data", shard, "--output", tmp_path / command.output)
    assert "key 'mean_rgb': value 3 is 1e+06, beyond what float16 holds" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--data": "nowhere*"}, "nowhere*: no file matches"),
        ({"--output": "nowhere/{}"}, "there is no folder nowhere"),
        ({"--output": "folder/{}"}, "is a folder"),
        ({"--device": "gpu0"}, "--device takes cpu, cuda or cuda:1"),
        ({"--device": "cuda:77"}, "--device cuda:77: this machine has"),
    ],
)
def test_invalid_arguments_are_refused_in_one_sentence(
    command: Command,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    told: str,
) -> None:
    write_shard(tmp_path / "a.tfrecord", videos(b"one"))
    (tmp_path / "folder" / command.output).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    options = {"--data": "a.tfrecord", "--output": "{}"} | changes
    arguments = [word.format(command.output) for option in options.items() for word in option]
    assert told in refused(capsys, command, exported, *arguments)
    left = ["a.tfrecord", "folder", f"folder/{command.output}"]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == left
