"""Embeddings: every video once, in order, as the model's own encoder gives it; a whole file or none."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from finished import FinishedSearch
from pyarrow import parquet
from safetensors.torch import save_file
from tfrecord.writer import TFRecordWriter
from workplace import PROJECT

import models
from data.cache import find_shards
from data.tfrecord import read_examples
from models import FeatureStatistics, FusedMLP, LogisticConfig
from tuner import embed, errors, export
from tuner.precision import autocast

CPU = torch.device("cpu")
KEYS = ("mean_rgb", "mean_audio")  # in the order of the model's columns
UNITS = 16  # of the finished search's encoder
Video = tuple[bytes, np.ndarray]


def run(exported: Path, output: Path, *more: str, data: str) -> pa.Table:
    """What the command line writes."""
    embed.run([str(exported), "--data", data, "--output", str(output), "--device", "cpu", *more])
    return parquet.read_table(output)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one sentence that the command line says instead."""
    assert errors.main(partial(embed.run, [str(argument) for argument in arguments])) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and not told.out
    return told.err


def matrix(table: pa.Table) -> np.ndarray:
    """[N, H]."""
    return np.array(table["embedding"].to_pylist(), np.float32).reshape(-1, UNITS)


def write_shard(path: Path, videos: Iterable[Video], labels: bool = False) -> str:
    writer = TFRecordWriter(str(path))
    for id, features_D in videos:
        record = {
            "id": (id, "byte"),
            "mean_rgb": (features_D[:24].tolist(), "float"),
            "mean_audio": (features_D[24:].tolist(), "float"),
        }
        writer.write(record | ({"labels": ([1], "int")} if labels else {}))
    writer.close()
    return str(path)


def videos(*ids: bytes) -> list[Video]:
    return list(zip(ids, np.random.default_rng(0).normal(size=(len(ids), 32)), strict=True))


def set_config(folder: Path, **changes: Any) -> None:
    """Edits an export by hand, checksums and all."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    sums = (folder / "SHA256SUMS").read_text()
    for name in ("config.json", "model.safetensors"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        sums = re.sub(rf"\w+(?=  {name})", digest, sums)
    (folder / "SHA256SUMS").write_text(sums)


@pytest.fixture
def logistic(exported: Path, tmp_path: Path) -> Path:
    """An export of a model that has no encoder."""
    folder = tmp_path / "logistic"
    shutil.copytree(exported, folder)
    sizes = models.Sizes(features={"mean_rgb": 24, "mean_audio": 8}, num_classes=12)
    statistics = FeatureStatistics(
        num_videos=10, mean_D=torch.zeros(32), variance_D=torch.ones(32), label_counts_C=torch.ones(12)
    )
    save_file(models.build(LogisticConfig(), sizes, statistics).state_dict(), folder / "model.safetensors")
    set_config(folder, model={"kind": "logistic"})
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_video_comes_once_in_order_with_the_encoder_s_own_embedding(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path, dtype: str, precision: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    set_config(folder, dtype=dtype, precision=precision)
    data = str(finished_search.folder / "shards" / "t*")
    table = run(folder, tmp_path / "out.parquet", data=data)
    examples = [example for shard in find_shards(data) for example in read_examples(shard)]
    features_ND = np.array(
        [np.concatenate([np.asarray(example.features[key]) for key in KEYS]) for example in examples], dtype
    )
    model = export.load_model(folder, CPU).model
    assert isinstance(model, FusedMLP)
    with torch.inference_mode(), autocast(CPU, "bf16" if precision == "bf16" else "fp32"):
        embeddings_NH = model.encoder(torch.from_numpy(features_ND)).float()
    assert table["id"].to_pylist() == [example.id.decode() for example in examples]
    tolerance = 1e-2 if precision == "bf16" else 1e-6
    np.testing.assert_allclose(matrix(table), embeddings_NH.numpy(), rtol=0, atol=tolerance)
    assert len(table) == 450
    rounded = torch.from_numpy(matrix(table)).bfloat16().float()
    assert np.array_equal(matrix(table), rounded.numpy()) == (precision == "bf16")  # it was really computed so


def test_the_model_s_head_on_the_embeddings_is_the_model(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    table = run(exported, tmp_path / "out.parquet", data=finished_search.validate)
    model = finished_search.load_best()
    assert isinstance(model, FusedMLP)
    features_ND = torch.from_numpy(np.array(finished_search.data.validate.features_ND))
    with torch.inference_mode():
        logits_NC = model.head(torch.from_numpy(matrix(table)))
        torch.testing.assert_close(logits_NC, model(features_ND), rtol=1e-5, atol=1e-5)


def test_the_file_says_its_types_and_where_the_encoder_comes_from(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    run(exported, tmp_path / "out.parquet", data=finished_search.validate)
    schema = parquet.read_schema(tmp_path / "out.parquet")
    assert schema.names == ["id", "embedding"]
    assert schema.types == [pa.string(), pa.list_(pa.float32(), UNITS)]
    assert schema.metadata == {b"experiment": b"tiny", b"search": b"20260102-030405-0001", b"trial": b"trial-1"}


def test_it_is_written_shard_by_shard(finished_search: FinishedSearch, exported: Path, tmp_path: Path) -> None:
    run(exported, tmp_path / "out.parquet", data=finished_search.validate)
    written = parquet.ParquetFile(tmp_path / "out.parquet").metadata
    of_shards = [sum(1 for _ in read_examples(shard)) for shard in find_shards(finished_search.validate)]
    assert [written.row_group(group).num_rows for group in range(written.num_row_groups)] == of_shards


def test_a_large_shard_is_written_in_row_groups_that_a_reader_can_hold(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "ROW_GROUP", 8)
    shard = write_shard(tmp_path / "a.tfrecord", videos(*(f"v{number}".encode() for number in range(20))))
    table = run(exported, tmp_path / "out.parquet", data=shard)
    written = parquet.ParquetFile(tmp_path / "out.parquet").metadata
    assert [written.row_group(group).num_rows for group in range(written.num_row_groups)] == [8, 8, 4]
    assert table["id"].to_pylist() == [f"v{number}" for number in range(20)]


def test_labels_are_not_needed(exported: Path, tmp_path: Path) -> None:
    here = videos(b"one", b"two", b"three")
    without = run(exported, tmp_path / "a.parquet", data=write_shard(tmp_path / "a.tfrecord", here))
    labelled = run(exported, tmp_path / "b.parquet", data=write_shard(tmp_path / "b.tfrecord", here, labels=True))
    assert without["id"].to_pylist() == ["one", "two", "three"]
    assert without.equals(labelled)


def test_an_id_that_is_not_utf8_keeps_its_bytes_in_digits(exported: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tfrecord", videos("\u00e9".encode(), b"\xff\xfe1"))
    table = run(exported, tmp_path / "out.parquet", data=shard)
    assert table["id"].to_pylist() == ["\u00e9", r"\xff\xfe1"]


def test_neither_the_batch_size_nor_the_cut_into_shards_matters(exported: Path, tmp_path: Path) -> None:
    here = videos(*(f"v{number}".encode() for number in range(20)))
    one = write_shard(tmp_path / "one.tfrecord", here)
    for index, (first, last) in enumerate(((0, 7), (7, 7), (7, 13), (13, 20))):  # one of them is empty
        write_shard(tmp_path / f"part{index}.tfrecord", here[first:last])
    whole = run(exported, tmp_path / "a.parquet", data=one)
    parts = run(exported, tmp_path / "b.parquet", "--batch-size", "3", data=str(tmp_path / "part*"))
    assert parts["id"].to_pylist() == whole["id"].to_pylist()
    np.testing.assert_allclose(matrix(parts), matrix(whole), rtol=0, atol=1e-6)


def test_no_video_gives_a_file_without_rows(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.tfrecord").touch()
    table = run(exported, tmp_path / "out.parquet", data=str(tmp_path / "empty.tfrecord"))
    assert len(table) == 0 and table.schema.types == [pa.string(), pa.list_(pa.float32(), UNITS)]


def test_the_last_line_says_how_many(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(exported, tmp_path / "out.parquet", data=write_shard(tmp_path / "a.tfrecord", videos(b"one", b"two")))
    assert re.fullmatch(r".*out\.parquet: 2 videos in [\d.]+ s \([\d,]+ videos/s\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("there", [None, "yesterday's"])
def test_a_bad_shard_leaves_no_half_file(
    finished_search: FinishedSearch,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    there: str | None,
) -> None:
    for shard in find_shards(finished_search.validate):
        shutil.copy(shard, tmp_path)
    (tmp_path / "validate9.tfrecord").write_bytes(Path(shard).read_bytes()[:-5])
    output = tmp_path / "out" / "embeddings.parquet"
    output.parent.mkdir()
    if there:
        output.write_text(there)
    told = refused(capsys, exported, "--data", tmp_path / "validate*.tfrecord", "--output", output)
    assert "validate9.tfrecord: record at byte" in told and "cut short" in told
    assert [path.read_text() for path in output.parent.iterdir()] == ([there] if there else [])


def test_a_full_disk_is_told_and_leaves_no_half_file(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    """A limit on the size of a file stands for it."""
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); import tuner.embed as e\n"
    program += "sys.exit(e.main(e.run))"
    command = [sys.executable, "-c", program, str(exported), "--data", finished_search.validate, "--device", "cpu"]
    output = tmp_path / "out.parquet"
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"{output}: cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_training_could_not_hold_is_named(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features_D = np.zeros(32)
    features_D[3] = 1e6
    shard = write_shard(tmp_path / "a.tfrecord", [*videos(b"fine"), (b"huge", features_D)])
    told = refused(capsys, exported, "--data", shard, "--output", tmp_path / "out.parquet")
    assert "key 'mean_rgb': value 3 is 1e+06, beyond what float16 holds" in told


def test_a_model_without_an_encoder_is_refused_with_what_to_do(
    logistic: Path, finished_search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    told = refused(capsys, logistic, "--data", finished_search.validate, "--output", output)
    assert "a model of kind logistic has no encoder" in told and "export a trial of a fused_mlp" in told
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "a.tfrecord", "--output", "out.csv"], "--output must end in .parquet"),
        (["--data", "a.tfrecord", "--output", "out"], "--output must end in .parquet"),
        (["--data", "nowhere*", "--output", "out.parquet"], "nowhere*: no file matches"),
        (["--data", "a.tfrecord", "--output", "nowhere/out.parquet"], "there is no folder nowhere"),
        (["--data", "a.tfrecord", "--output", "out.parquet", "--device", "gpu0"], "--device takes cpu, cuda or cuda:1"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    write_shard(tmp_path / "a.tfrecord", videos(b"one"))
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, exported, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfrecord"]
