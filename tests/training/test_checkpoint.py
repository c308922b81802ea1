"""The state of a trial on disk is loaded bit for bit, or refused in one sentence."""

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from data import retry
from data.errors import UnreachableError
from tests.support.finished import FAST, FinishedSearch
from tuner.errors import CheckpointDamaged, CheckpointError
from tuner.training import checkpoint
from tuner.training.pipelines import train

SETTINGS = {"model": {"hidden": 8, "towers": {"mean_rgb": 4}}, "seed": 1}
FILES = ("model.safetensors", "training.pt", "checkpoint.json")


def state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    model = {"weight": torch.randn(5, 4, generator=generator), "seen": torch.tensor(7), "empty": torch.zeros(0)}
    training = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}}, "rng": generator.get_state()}
    return model, training


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, training = state()
    checkpoint.save(tmp_path / "epoch-0003", model=model, training=training, settings=SETTINGS)
    return tmp_path / "epoch-0003"


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return bool(left == right)


def test_a_checkpoint_is_loaded_bit_for_bit(saved: Path) -> None:
    model, training = checkpoint.load(saved, settings=SETTINGS)
    assert equal(model, state()[0])
    assert equal(training, state()[1])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_detected(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved, settings=SETTINGS)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: (missing|not readable)"):
        checkpoint.load(saved, settings=SETTINGS)


@pytest.mark.parametrize("name", FILES[:2])
def test_a_truncated_file_is_detected(saved: Path, name: str) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        checkpoint.load(saved, settings=SETTINGS)


def test_a_manifest_that_is_nested_too_deeply_is_damaged(saved: Path) -> None:
    (saved / "checkpoint.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointDamaged, match=r"checkpoint\.json: not readable"):
        checkpoint.load(saved, settings=SETTINGS)


def test_other_settings_are_named_with_both_values(saved: Path) -> None:
    others = {"model": {"hidden": 16, "towers": {"mean_rgb": 4}}, "seed": 1}
    with pytest.raises(CheckpointError, match=r"the checkpoint has other settings: model\.hidden: 8 -> 16$"):
        checkpoint.load(saved, settings=others)
    with pytest.raises(CheckpointError, match=r"model\.hidden"):
        checkpoint.load_weights(saved, settings=others)


def test_a_setting_that_is_newer_than_the_checkpoint_may_have_its_default(tmp_path: Path) -> None:
    model, training = state()
    before, now = {"loss": {"l2": 1.0}}, {"loss": {"l2": 1.0, "kind": "sigmoid_cross_entropy", "layers": {}}}
    checkpoint.save(
        tmp_path / "old", model=model, training=training, settings={**before, "probe": before, "training": {}}
    )
    checkpoint.manifest_of(tmp_path / "old", {**now, "probe": now, "training": {"accumulate": 1, "average": None}})
    with pytest.raises(CheckpointError, match=r"loss\.kind: sigmoid_cross_entropy -> hinge$"):
        checkpoint.manifest_of(
            tmp_path / "old", {"loss": {**now["loss"], "kind": "hinge"}, "probe": now, "training": {}}
        )


def test_a_checkpoint_of_a_newer_version_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / "checkpoint.json").read_text()) | {"version": 99}
    (saved / "checkpoint.json").write_text(checkpoint.sealed(manifest))
    with pytest.raises(CheckpointError, match="version 99, but this program reads version 3"):
        checkpoint.load(saved, settings=SETTINGS)


@pytest.mark.parametrize("manifest", ["{}", "[]", "3", '{"version": 1}', '{"version": 1, "settings": {}, "files": {}}'])
def test_a_manifest_of_another_structure_counts_as_damaged(saved: Path, manifest: str) -> None:
    (saved / "checkpoint.json").write_text(manifest)
    with pytest.raises(CheckpointError):
        checkpoint.load(saved, settings={})


def test_discarding_the_training_state_keeps_the_weights(saved: Path) -> None:
    checkpoint.discard_training_state(saved)
    checkpoint.discard_training_state(saved)
    checkpoint.check(saved, weights_only=True)
    assert equal(checkpoint.load_weights(saved, settings=SETTINGS), state()[0])
    with pytest.raises(CheckpointError, match=r"training\.pt: missing"):
        checkpoint.load(saved, settings=SETTINGS)


def test_a_flipped_byte_in_the_manifest_is_damage_and_not_other_settings(saved: Path) -> None:
    path = saved / "checkpoint.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointDamaged):
            checkpoint.load(saved, settings=SETTINGS)


def test_an_incomplete_copy_is_damaged(saved: Path) -> None:
    checkpoint.check(saved, weights_only=True)
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors: damaged"):
        checkpoint.check(saved, weights_only=True)
    (saved / "checkpoint.json").unlink()
    with pytest.raises(CheckpointDamaged, match=r"checkpoint\.json: not readable"):
        checkpoint.check(saved, weights_only=True)


def test_a_save_that_fails_keeps_the_earlier_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, training = state()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, model=model, training=training, settings={})
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert equal(checkpoint.load_weights(saved, settings=SETTINGS), model)


@pytest.mark.parametrize("kilobytes", [40, 300])
def test_a_full_disk_is_an_error_that_names_the_disk(tmp_path: Path, kilobytes: int) -> None:
    """On a real one: the weights do not fit, or the training state does not."""
    options = f"size={kilobytes}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        model, training = {"weight": torch.zeros(50_000)}, {"state": torch.zeros(50_000)}
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoint.save(tmp_path / "epoch-0001", model=model, training=training, settings={})
        assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_trial_resumed_from_a_checkpoint_equals_the_uninterrupted_one(
    finished_search: FinishedSearch, tmp_path: Path
) -> None:
    settings = finished_search.experiment.trial_config(FAST)
    cpu = torch.device("cpu")
    first = next(train(settings, finished_search.data, device=cpu, seed=5))
    first.state.save(tmp_path / "epoch-0001", settings)
    uninterrupted = [*train(settings, finished_search.data, device=cpu, seed=5)][-1]
    torch.manual_seed(99)
    resumed = [*train(settings, finished_search.data, device=cpu, seed=5, resume_from=tmp_path / "epoch-0001")]
    assert [(progress.epoch, progress.repeated) for progress in resumed] == [(1, True), (2, False)]
    assert equal(resumed[-1].state.model.state_dict(), uninterrupted.state.model.state_dict())
    assert resumed[-1].metrics["gap"] == uninterrupted.metrics["gap"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_a_read_that_fails_for_a_moment_is_no_damage(saved: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The trial would begin again from an older checkpoint."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    failing_reads(monkeypatch, OSError(number, os.strerror(number)), every=2)
    checkpoint.check(saved)
    loaded, expected = checkpoint.load(saved, settings=SETTINGS), state()
    assert equal(loaded[0], expected[0]) and equal(loaded[1], expected[1])


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied")], ids=repr
)
def test_a_checkpoint_that_cannot_be_read_is_not_a_damaged_one(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.05)
    failing_reads(monkeypatch, error, every=1)
    with pytest.raises(UnreachableError, match=str(error.strerror)):
        checkpoint.check(saved)


def failing_reads(monkeypatch: pytest.MonkeyPatch, error: OSError, every: int) -> None:
    """Let every so manieth opening of a file fail."""
    opened, original = [], Path.open

    def open(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        if len(opened) % every == 0:
            raise error
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open)
