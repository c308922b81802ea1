"""tuner.predict and tuner.embed write a complete file or none, and refuse what they cannot do in one sentence."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pyarrow import parquet

from data.cache.recipe import find_shards
from data.sample import write_shards
from tests.support.commands import refusal_of, run_command
from tests.support.finished import FinishedSearch, videos, write_shard
from tuner.export.layout import write_checksums
from tuner.export.loader import load_model


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


def written(command: Command, exported: Path, output: Path, *arguments: str | Path) -> bytes | object:
    """What the command writes for shards: a csv as it is, a table of embeddings as values."""
    run_command(command.module, exported, "--output", output, *arguments)
    return output.read_bytes() if output.suffix == ".csv" else parquet.read_table(output).to_pylist()


KEYS = {"id": "clip/data_id", "labels": "clip/label/index", "mean_rgb": "RGB"}


def sample(folder: Path, exported: Path, keys: dict[str, str]) -> str:
    """Write sample shards that fit the model, with these keys; return their glob."""
    schema = load_model(exported).schema
    settings = {"num_videos": 30, "num_shards": 2, "num_classes": schema.num_classes, "seed": 3}
    write_shards(folder, **settings, features=schema.features, keys=keys)
    return str(folder / "*.tfrecord")


def test_shards_with_other_keys_give_the_same(command: Command, exported: Path, tmp_path: Path) -> None:
    usual = written(command, exported, tmp_path / command.output, "--data", sample(tmp_path / "a", exported, {}))
    keys = [f"{name}={key}" for name, key in KEYS.items()]
    data = sample(tmp_path / "b", exported, KEYS)
    assert written(command, exported, tmp_path / command.output, "--data", data, "--keys", *keys) == usual
    model = shutil.copytree(exported, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    assert config["keys"] == {}
    (model / "config.json").write_text(json.dumps(config | {"keys": KEYS}))
    write_checksums(model)
    assert written(command, model, tmp_path / command.output, "--data", data) == usual


def test_a_large_shard_is_scored_in_blocks(
    command: Command, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = sample(tmp_path / "a", exported, {})
    whole = written(command, exported, tmp_path / command.output, "--data", data)
    capfd.readouterr()
    monkeypatch.setattr("data.tfrecord.framing.BLOCK_BYTES", 1000)
    in_blocks = written(command, exported, tmp_path / command.output, "--data", data)
    # Sums of batches of other sizes are rounded in another way.
    number = re.compile(r"-?\d+\.\d+(?:e-\d+)?")
    assert number.sub("", str(in_blocks)) == number.sub("", str(whole))
    values = [np.array(number.findall(str(content)), float) for content in (in_blocks, whole)]
    np.testing.assert_allclose(*values, atol=2e-6)
    assert ": 30 videos in " in capfd.readouterr().out


def test_keys_that_the_model_does_not_read_are_refused(
    command: Command, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = sample(tmp_path / "a", exported, {})
    told = refused(capsys, command, exported, "--data", data, "--output", tmp_path / command.output, "--keys", "rgb=x")
    assert "--keys: keys can name those of id, labels, mean_rgb" in told and "but got 'rgb'" in told
