"""A trial's state on disk: back bit for bit, or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finished import FAST, FinishedSearch

from tuner import checkpoint
from tuner.errors import CheckpointError
from tuner.train import train

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


def test_a_checkpoint_comes_back_bit_for_bit(saved: Path) -> None:
    model, training = checkpoint.load(saved, settings=SETTINGS)
    assert equal(model, state()[0])
    assert equal(training, state()[1])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_in_every_file(saved: Path, name: str) -> None:
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
def test_a_file_cut_short_is_found(saved: Path, name: str) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        checkpoint.load(saved, settings=SETTINGS)


def test_other_settings_are_named_with_both_values(saved: Path) -> None:
    others = {"model": {"hidden": 16, "towers": {"mean_rgb": 4}}, "seed": 1}
    with pytest.raises(CheckpointError, match=r"other settings shaped this checkpoint: model\.hidden: 8 -> 16$"):
        checkpoint.load(saved, settings=others)
    with pytest.raises(CheckpointError, match=r"model\.hidden"):
        checkpoint.load_weights(saved, settings=others)


def test_a_checkpoint_of_a_newer_version_is_refused(saved: Path) -> None:
    (saved / "checkpoint.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(CheckpointError, match="version 99, but this program reads version 2"):
        checkpoint.load(saved, settings=SETTINGS)


@pytest.mark.parametrize("manifest", ["{}", "[]", "3", '{"version": 1}', '{"version": 1, "settings": {}, "files": {}}'])
def test_a_manifest_of_another_shape_is_damage(saved: Path, manifest: str) -> None:
    (saved / "checkpoint.json").write_text(manifest)
    with pytest.raises(CheckpointError):
        checkpoint.load(saved, settings={})
    assert not checkpoint.is_whole(saved)


def test_without_its_training_state_the_weights_are_left(saved: Path) -> None:
    checkpoint.discard_training_state(saved)
    checkpoint.discard_training_state(saved)
    assert checkpoint.is_whole(saved)
    assert equal(checkpoint.load_weights(saved, settings=SETTINGS), state()[0])
    with pytest.raises(CheckpointError, match=r"training\.pt: missing"):
        checkpoint.load(saved, settings=SETTINGS)


def test_half_a_copy_is_not_whole(saved: Path) -> None:
    assert checkpoint.is_whole(saved)
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-1])
    assert not checkpoint.is_whole(saved)
    (saved / "checkpoint.json").unlink()
    assert not checkpoint.is_whole(saved)


def test_a_save_that_fails_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, training = state()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, model=model, training=training, settings={})
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert equal(checkpoint.load_weights(saved, settings=SETTINGS), model)


def test_a_trial_that_goes_on_from_a_checkpoint_ends_as_if_it_had_not_stopped(
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
