"""tuner.embed: every video once, in order, with the embedding of the model's encoder; a complete file or none."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

import models
from data.cache.recipe import find_shards
from data.tfrecord import read_examples
from models import FeatureStatistics, FusedMLP, LogisticConfig
from tests.support.commands import refusal_of, run_command
from tests.support.finished import FinishedSearch, videos, write_shard
from tests.support.workplace import PROJECT
from tuner.export.loader import load_model
from tuner.inference import embed
from tuner.training.precision import autocast

CPU = torch.device("cpu")
KEYS = ("mean_rgb", "mean_audio")  # in the order of the model's columns
UNITS = 16  # of the finished search's encoder


def run(exported: Path, output: Path, *more: str, data: str) -> pa.Table:
    """Run the command and read the table that it writes."""
    run_command("tuner.embed", exported, "--data", data, "--output", output, "--device", "cpu", *more)
    return parquet.read_table(output)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run the command, which must refuse its arguments; return its sentence."""
    return refusal_of(capsys, "tuner.embed", *arguments)


def matrix(table: pa.Table) -> np.ndarray:
    """The embeddings [N, H] of a table."""
    return np.array(table["embedding"].to_pylist(), np.float32).reshape(-1, UNITS)


def set_config(folder: Path, **changes: Any) -> None:
    """Edit config.json of an export, and adjust the checksums."""
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
def test_every_video_is_written_once_in_order_with_the_embedding_of_the_encoder(
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
    model = load_model(folder, CPU).model
    assert isinstance(model, FusedMLP)
    with torch.inference_mode(), autocast(CPU, "bf16" if precision == "bf16" else "fp32"):
        embeddings_NH = model.encoder(torch.from_numpy(features_ND)).float()
    assert table["id"].to_pylist() == [example.id.decode() for example in examples]
    tolerance = 1e-2 if precision == "bf16" else 1e-6
    np.testing.assert_allclose(matrix(table), embeddings_NH.numpy(), rtol=0, atol=tolerance)
    assert len(table) == 450
    rounded = torch.from_numpy(matrix(table)).bfloat16().float()
    assert np.array_equal(matrix(table), rounded.numpy()) == (
        precision == "bf16"
    )  # the encoder really ran in this precision


def test_the_head_applied_to_the_embeddings_gives_the_logits_of_the_model(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    table = run(exported, tmp_path / "out.parquet", data=finished_search.validate)
    model = finished_search.load_best()
    assert isinstance(model, FusedMLP)
    features_ND = torch.from_numpy(np.array(finished_search.data.validate.features_ND))
    with torch.inference_mode():
        logits_NC = model.head(torch.from_numpy(matrix(table)))
        torch.testing.assert_close(logits_NC, model(features_ND), rtol=1e-5, atol=1e-5)


def test_the_file_has_its_types_and_names_the_encoder(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    run(exported, tmp_path / "out.parquet", data=finished_search.validate)
    schema = parquet.read_schema(tmp_path / "out.parquet")
    assert schema.names == ["id", "embedding"]
    assert schema.types == [pa.string(), pa.list_(pa.float32(), UNITS)]
    assert schema.metadata == {b"experiment": b"tiny", b"search": b"20260102-030405-0001", b"trial": b"trial-1"}


def test_the_file_is_written_shard_by_shard(finished_search: FinishedSearch, exported: Path, tmp_path: Path) -> None:
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


def test_an_id_that_is_not_utf8_is_written_with_escaped_bytes(exported: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tfrecord", videos("\u00e9".encode(), b"\xff\xfe1"))
    table = run(exported, tmp_path / "out.parquet", data=shard)
    assert table["id"].to_pylist() == ["\u00e9", r"\xff\xfe1"]


def test_the_embeddings_do_not_depend_on_the_batch_size_or_the_shards(exported: Path, tmp_path: Path) -> None:
    here = videos(*(f"v{number}".encode() for number in range(20)))
    one = write_shard(tmp_path / "one.tfrecord", here)
    for index, (first, last) in enumerate(((0, 7), (7, 7), (7, 13), (13, 20))):  # one of them is empty
        write_shard(tmp_path / f"part{index}.tfrecord", here[first:last])
    whole = run(exported, tmp_path / "a.parquet", data=one)
    parts = run(exported, tmp_path / "b.parquet", "--batch-size", "3", data=str(tmp_path / "part*"))
    assert parts["id"].to_pylist() == whole["id"].to_pylist()
    np.testing.assert_allclose(matrix(parts), matrix(whole), rtol=0, atol=1e-6)


def test_shards_without_videos_give_a_file_without_rows(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.tfrecord").touch()
    table = run(exported, tmp_path / "out.parquet", data=str(tmp_path / "empty.tfrecord"))
    assert len(table) == 0 and table.schema.types == [pa.string(), pa.list_(pa.float32(), UNITS)]


def test_the_last_line_has_the_number_of_videos(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(exported, tmp_path / "out.parquet", data=write_shard(tmp_path / "a.tfrecord", videos(b"one", b"two")))
    assert re.fullmatch(r".*out\.parquet: 2 videos in [\d.]+ s \([\d,]+ videos/s\)\n", capsys.readouterr().out)


def test_a_full_disk_is_an_error_and_leaves_no_incomplete_file(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    """A limit on the size of a file, which has the effect of a full disk."""
    program = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    program += "runpy.run_module('tuner.embed', run_name='__main__')"
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


def test_a_model_without_an_encoder_is_refused_with_advice(
    logistic: Path, finished_search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    told = refused(capsys, logistic, "--data", finished_search.validate, "--output", output)
    assert "a model of kind logistic has no encoder" in told and "export a trial of a fused_mlp" in told
    assert not output.exists()


@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_an_output_name_without_parquet_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    told = refused(capsys, exported, "--data", "a.tfrecord", "--output", tmp_path / name)
    assert told.startswith("--output must end in .parquet")
    assert not list(tmp_path.iterdir())
