"""A teacher's predictions: from shards into a file, and back by video id."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.support.commands import exit_code_of, run_command
from tests.support.finished import FinishedSearch
from tuner.errors import ConfigError
from tuner.export.loader import load_model
from tuner.training import teacher

IDS = [b"b", b"aa", b"c\xff"]
MODEL = {"experiment": "tiny", "trials": [1]}


def write(path: Path, ids: list[bytes] = IDS, num_classes: int = 12) -> Path:
    """Video i has the classes i and i + 1."""
    first = np.arange(len(ids))
    classes_NK = np.stack([first, first + 1], axis=1)
    probabilities_NK = np.stack([0.5 + first / 10, first / 10], axis=1)
    teacher.write(path, ids, classes_NK, probabilities_NK, num_classes=num_classes, model=MODEL)
    return path


def test_predictions_are_found_by_video_id_and_an_unknown_id_has_none(tmp_path: Path) -> None:
    read = teacher.read(write(tmp_path / "t.safetensors"), 12)
    rows = read.rows(np.array([b"c\xff", b"zzzzzz", b"b", b"", b"a", b"aa"]))
    assert read.classes_NK[rows[[0, 2, 5]], 0].tolist() == [2, 0, 1]
    assert rows[[1, 3, 4]].tolist() == [-1, -1, -1]
    assert read.probabilities_NK[rows[0]].tolist() == np.array([0.7, 0.2], np.float16).tolist()
    assert read.model == MODEL


def test_the_file_has_the_documented_format(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors")
    stored = load_file(path)
    assert {name: (str(array.dtype), array.shape) for name, array in stored.items()} == {
        "ids": ("uint8", (3, 2)),
        "classes": ("int32", (3, 2)),
        "probabilities": ("float16", (3, 2)),
    }
    assert [bytes(row).rstrip(b"\0") for row in stored["ids"]] == sorted(IDS)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata().keys() == {"format", "num_classes", "model", "crc32c"}


def test_of_a_video_that_occurs_twice_the_first_predictions_are_used(tmp_path: Path) -> None:
    read = teacher.read(write(tmp_path / "t.safetensors", [b"a", b"b", b"a"]), 12)
    assert read.ids.tolist() == [b"a", b"b"] and read.classes_NK[:, 0].tolist() == [0, 1]


def test_a_file_may_have_no_videos(tmp_path: Path) -> None:
    read = teacher.read(write(tmp_path / "t.safetensors", []), 12)
    assert read.rows(np.array([b"a", b"b"])).tolist() == [-1, -1]


def test_the_command_writes_the_predictions_of_the_model(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path
) -> None:
    output = tmp_path / "teacher.safetensors"
    run_command(
        "tuner.predict", str(exported), "--data", finished_search.validate, "--output", str(output), "--device", "cpu"
    )
    read, cache = teacher.read(output, 12), finished_search.data.validate
    rows = read.rows(np.asarray(cache.ids))
    assert (rows >= 0).all() and read.classes_NK.shape == (150, 12)  # of 12 classes 50 are all
    with torch.inference_mode():
        logits_NC = load_model(exported, torch.device("cpu")).model(torch.tensor(cache.features_ND))
    said_NC = np.zeros((150, 12))
    np.put_along_axis(said_NC, read.classes_NK[rows].astype(np.int64), read.probabilities_NK[rows], axis=1)
    np.testing.assert_allclose(said_NC, logits_NC.sigmoid(), rtol=1e-3, atol=1e-7)
    assert read.model["trials"] == [1] and read.model["data_fingerprint"] == finished_search.search.fingerprint


def test_fewer_classes_are_kept_on_request(finished_search: FinishedSearch, exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "teacher.safetensors"
    run_command(
        "tuner.predict", str(exported), "--data", finished_search.validate, "--output", str(output), "--top-k", "3"
    )
    assert teacher.read(output, 12).classes_NK.shape == (150, 3)
    (tmp_path / "other").touch()
    assert output.stat().st_mode == (tmp_path / "other").stat().st_mode  # others may read it


def damaged(path: Path, **changes: Any) -> None:
    """As an earlier version wrote it, which knew no checksum."""
    about = {"format": "teacher-1", "num_classes": "12", "model": json.dumps(MODEL)}
    save_file(load_file(path) | changes, path, about)


def test_a_file_of_another_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match=r"the teacher has 12 classes, but the data has 3,862; write it with"):
        teacher.read(path, 3862)
    for changes, told in (
        ({"classes": np.full((3, 2), 12, np.int32)}, "it names classes outside 0 to 11"),
        ({"classes": np.zeros((2, 2), np.int32)}, "its arrays do not fit each other"),
        ({"probabilities": np.zeros((3, 2), np.float32)}, "its arrays do not fit each other"),
    ):
        damaged(write(path), **changes)
        with pytest.raises(ConfigError, match=told):
            teacher.read(path, 12)
    save_file({"ids": np.zeros(3)}, path)
    with pytest.raises(ConfigError, match="is not a file of teacher predictions"):
        teacher.read(path, 12)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(ConfigError, match=r"t\.safetensors: cannot be read as teacher predictions"):
        teacher.read(path, 12)
    with pytest.raises(ConfigError, match=r"nowhere: cannot be read as teacher predictions"):
        teacher.read(tmp_path / "nowhere", 12)


def test_a_changed_byte_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors")
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(begin, len(whole)), whole.index(b"tiny"), whole.index(b"teacher-2") + 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 3]) + whole[at + 1 :])
        with pytest.raises(ConfigError, match=r"^\S+: "):
            teacher.read(path, 12)


def test_a_file_without_a_checksum_is_checked_for_what_no_teacher_writes(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    path = write(tmp_path / "t.safetensors")
    arrays = load_file(path)
    about = {"format": "teacher-1", "num_classes": "12", "model": json.dumps(MODEL)}
    save_file(arrays, path, about)
    assert teacher.read(path, 12).model == MODEL
    for changes, told in (
        ({"ids": arrays["ids"][::-1].copy()}, "its videos are not in ascending order"),
        ({"probabilities": arrays["probabilities"] * np.float16(-1)}, "it has probabilities outside"),
        ({"probabilities": arrays["probabilities"] * np.float16("nan")}, "it has probabilities outside"),
    ):
        save_file(arrays | changes, path, about)
        with pytest.raises(ConfigError, match=told):
            teacher.read(path, 12)
    save_file(arrays, path, about | {"model": "[1]"})
    with pytest.raises(ConfigError, match="does not say which model"):
        teacher.read(path, 12)
    save_file(arrays, path, about | {"format": "teacher-2"})
    with pytest.raises(ConfigError, match="its checksum is not the one written"):
        teacher.read(path, 12)


def test_an_interrupted_write_leaves_no_file(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(b"damaged")
    output = tmp_path / "teacher.safetensors"
    assert exit_code_of("tuner.predict", exported, "--data", tmp_path / "a.tfrecord", "--output", output) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfrecord"]
