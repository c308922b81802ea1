"""Sample shards: repeatable, in the real format, learnable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tfrecord.reader import tfrecord_loader

from data.errors import DataError
from data.frames import decode
from data.sample import MARKER, write_shards, write_splits, writer
from data.schema import Schema
from data.tfrecord.framing import count_records
from tests.support.commands import exit_code_of

SMALL = {"mean_rgb": 24, "mean_audio": 8}
SPLITS = {"train": 40, "validate": 10}


def write(directory: Path, **changes) -> dict[str, list[Path]]:
    settings = {"num_videos": SPLITS, "num_shards": 4, "num_classes": 12, "seed": 3, "features": SMALL}
    return write_splits(directory, **settings | changes)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("blas", ["Haswell", "SkylakeX", "Prescott"])
def test_the_same_seed_gives_the_same_bytes_in_any_process_on_any_processor(tmp_path, blas):
    code = f"from data.sample import write_shards; write_shards({str(tmp_path / 'b')!r}, num_videos=200, num_shards=2, "
    code += f"num_classes=9, seed=5, features={SMALL})"
    # OpenBLAS multiplies as on such a processor: in another order, each with its own rounding.
    there = os.environ | {"OPENBLAS_CORETYPE": blas}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], env=there)
    for name, seed in {"a": 5, "c": 6}.items():
        write_shards(tmp_path / name, num_videos=200, num_shards=2, num_classes=9, seed=seed, features=SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_shards_have_the_requested_videos_and_both_readers_agree(tmp_path):
    paths = write_shards(tmp_path, num_videos=23, num_shards=3, num_classes=12, seed=1, features=SMALL, prefix="test")
    assert [path.name for path in paths] == [f"test000{n}.tfrecord" for n in range(3)]
    assert [count_records(path) for path in paths] == [7, 8, 8]
    for path in paths:
        videos = decode(path, Schema(features=SMALL, num_classes=12))
        bounds = videos.label_offsets.tolist()
        for n, theirs in enumerate(tfrecord_loader(str(path), None)):
            assert theirs["id"] == videos.ids[n] and len(theirs["id"]) == 4
            assert theirs["labels"].tolist() == videos.label_indices[bounds[n] : bounds[n + 1]].tolist()
            assert np.array_equal(np.concatenate([theirs[key] for key in SMALL]), videos.features_ND[n])
            assert 1 <= len(theirs["labels"]) <= 6


def test_no_video_is_in_two_splits(tmp_path):
    splits = write(tmp_path)
    schema = Schema(features=SMALL, num_classes=12)
    ids = [bytes(i) for paths in splits.values() for path in paths for i in decode(path, schema).ids]
    assert len(set(ids)) == len(ids) == 50


def test_the_same_sample_is_written_once(tmp_path):
    first = write(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {split: len(paths) for split, paths in first.items()} == {"train": 4, "validate": 1}
    assert write(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_a_sample_with_a_missing_shard_is_written_again(tmp_path):
    paths = write(tmp_path)["train"]
    before = contents(tmp_path)
    paths[2].unlink()
    write(tmp_path)
    assert contents(tmp_path) == before


def test_another_sample_replaces_the_first_and_leaves_none_of_its_shards(tmp_path):
    write(tmp_path)
    write(tmp_path, num_shards=2)
    assert sorted(contents(tmp_path)) == [MARKER, "train0000.tfrecord", "train0001.tfrecord", "validate0000.tfrecord"]


def test_a_sample_of_a_killed_writer_is_written_again(tmp_path, monkeypatch):
    write(tmp_path)
    replace = writer.os.replace

    def killed(source, target):
        if str(target).endswith("train0001.tfrecord"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer.os, "replace", killed)
        write(tmp_path, seed=4)
    assert json.loads((tmp_path / MARKER).read_text())["settings"] is None
    write(tmp_path, seed=4)
    write(tmp_path / "fresh", seed=4)
    fresh = contents(tmp_path / "fresh")
    assert {name: (tmp_path / name).read_bytes() for name in fresh} == fresh


def test_a_file_of_another_origin_is_never_touched(tmp_path):
    (tmp_path / "train0000.tfrecord").write_bytes(b"real data")
    with pytest.raises(DataError, match=r"train0000\.tfrecord exists and belongs to no sample"):
        write(tmp_path)
    assert contents(tmp_path) == {"train0000.tfrecord": b"real data"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_shards": 0}, "num_shards must be from 1 to 10,000"),
        ({"num_videos": {"train": -1}}, "num_videos must be from 0 to 923,521"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"seed": -1}, "seed must be from 0 to 4,294,967,295"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path, **change)


def test_a_linear_model_ranks_far_better_than_label_frequency_does(tmp_path):
    """Ridge regression on 1,500 videos, the precision of each video's first label, against the commonest class."""
    splits = write_splits(tmp_path, num_videos={"train": 1500, "validate": 500}, num_classes=50)

    def table(paths):
        shards = [decode(path, Schema(num_classes=50)) for path in paths]
        labels_NC = np.zeros((sum(len(shard.ids) for shard in shards), 50), np.float32)
        rows = np.concatenate([np.diff(shard.label_offsets) for shard in shards])
        labels_NC[np.repeat(np.arange(len(rows)), rows), np.concatenate([shard.label_indices for shard in shards])] = 1
        return np.concatenate([shard.features_ND for shard in shards]), labels_NC

    (x_ND, y_NC), (x_VD, y_VC) = table(splits["train"]), table(splits["validate"])
    mean, scale = x_ND.mean(0), x_ND.std(0)
    x_ND, x_VD = (x_ND - mean) / scale, (x_VD - mean) / scale
    weights_DC = np.linalg.solve(x_ND.T @ x_ND + 300 * np.eye(x_ND.shape[1]), x_ND.T @ (y_NC - y_NC.mean(0)))
    scores_VC = x_VD @ weights_DC + y_NC.mean(0)
    hit = y_VC[np.arange(len(y_VC)), scores_VC.argmax(1)].mean()
    assert hit > 0.8 and hit > 2 * y_VC.mean(0).max()


def test_the_command_prints_what_it_wrote(tmp_path, capsys):
    arguments = [str(tmp_path), "--train", "30", "--validate", "10", "--test", "5", "--shards", "2", "--classes", "8"]
    assert exit_code_of("data.sample", *arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("30 train in 2 shards, 10 validate in 1 shard, 5 test in 1 shard: ") and out.count("\n") == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train0000.tfrecord").touch()
    assert exit_code_of("data.sample", tmp_path / "other", *arguments[1:]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("train0000.tfrecord exists and belongs to no sample; give another folder\n")
    assert captured.err.count("\n") == 1 and not captured.out
