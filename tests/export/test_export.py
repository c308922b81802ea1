"""Exports: the folder holds the trial's model, is complete and checked, and never replaces something else."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.batches import Batches
from models import LinearConfig
from tests.support.commands import refusal_of, run_command
from tests.support.finished import NAMES, FinishedSearch
from tuner.config.experiment import load
from tuner.errors import ModelFolderError, NothingToExport, SearchError
from tuner.export import layout, model_card, weights, writer
from tuner.export.checkpoints import best_checkpoint, discard_training_states, keep_statistics
from tuner.export.formats import Contents
from tuner.export.loader import load_model
from tuner.export.metadata import trial_yaml
from tuner.storage.journal import TrialHistory
from tuner.training import checkpoint, evaluation
from tuner.training.config import TrialConfig
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FILES = {
    "model.safetensors",
    "model.pt2",
    "config.json",
    "statistics.safetensors",
    "trial.yaml",
    "classes.csv",
    "metrics.json",
    "README.md",
    "SHA256SUMS",
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


def test_the_exported_model_scores_as_its_trial_did(finished_search: FinishedSearch, exported: Path) -> None:
    loaded = load_model(exported, CPU)
    batches = Batches(loaded.open(finished_search.validate), batch_size=1024, shuffle=False)
    metrics = evaluation.evaluate(loaded.model, batches, loaded.precision)
    report = finished_search.best.reports[2]
    for key in ("gap", "hit_at_1", "perr", "map"):
        assert metrics[key] == report[key]
    assert metrics["loss"] == report["loss_validate"]


def test_weights_and_buffers_are_loaded_bit_for_bit(finished_search: FinishedSearch, exported: Path) -> None:
    own, loaded = finished_search.load_best().state_dict(), load_model(exported, CPU).model.state_dict()
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)


def test_a_folder_and_a_device_may_be_given_as_strings(exported: Path) -> None:
    given, default = load_model(str(exported), "cpu"), load_model(exported)
    features_BD = torch.ones(2, 32)
    assert torch.equal(given.model(features_BD), default.model(features_BD))


def test_the_folder_has_exactly_the_documented_files_with_their_checksums(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums.keys() == FILES - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]


def test_the_card_s_own_snippet_runs_on_pytorch_alone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    names: dict[str, Any] = {}
    exec(snippet, names)
    model = load_model(exported, CPU).model
    assert torch.allclose(names["probabilities"], model(names["features"]).sigmoid())
    for rows in (1, 5):
        assert names["model"](torch.zeros(rows, 32)).shape == (rows, 12)


def test_loading_needs_neither_yaml_nor_pydantic_nor_the_frameworks(exported: Path) -> None:
    program = (
        "import sys, torch; from pathlib import Path; from tuner.export.loader import load_model;"
        f"load_model(Path({str(exported)!r}), torch.device('cpu'));"
        "print({'yaml', 'pydantic', 'ray', 'mlflow', 'optuna'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_trial_yaml_is_an_experiment_that_trains_the_same_model_again(
    finished_search: FinishedSearch, exported: Path
) -> None:
    again = load(exported / "trial.yaml", None)
    settings = finished_search.experiment.trial_config(finished_search.best.values)
    assert settings.training.seed == "per_trial"
    trial = again.trial_config({})
    assert trial == replace(settings, training=replace(settings.training, seed=2))
    assert again.data == finished_search.experiment.data
    *_, last = train(trial, open_dataset(again.data), device=CPU, seed=trial.seed(0))
    assert last.metrics["gap"] == finished_search.best.score


def test_trial_yaml_of_a_closed_form_trial_omits_settings_without_effect(tmp_path: Path) -> None:
    zoo = load(ROOT / "experiments.yaml", "zoo")
    trial = TrialHistory(number=2, id="2", values={**zoo.space.defaults(), "model": "linear"}, sampler_state={})
    (tmp_path / "trial.yaml").write_text(trial_yaml(zoo, [trial]))
    again = load(tmp_path / "trial.yaml", None).trial_config({})
    assert again == TrialConfig(model=LinearConfig())


def test_config_json_names_the_search_and_the_trial(finished_search: FinishedSearch, exported: Path) -> None:
    told = load_model(exported, CPU).config
    assert told["features"] == [{"name": "mean_rgb", "width": 24}, {"name": "mean_audio", "width": 8}]
    assert told["trial"] == {"number": 1, "id": "trial-1", "epoch": 2}
    assert (told["search"], told["data_fingerprint"]) == ("20260102-030405-0001", finished_search.search.fingerprint)


def test_the_folder_has_the_training_statistics(finished_search: FinishedSearch, exported: Path) -> None:
    stored, statistics = load_file(exported / "statistics.safetensors"), finished_search.data.statistics
    assert torch.equal(stored["mean"], statistics.mean_D)
    assert torch.equal(stored["variance"], statistics.variance_D)
    assert torch.equal(stored["label_counts"], statistics.label_counts_C)
    assert stored["num_videos"] == 400


def test_class_names_keep_their_commas_and_quotes(exported: Path) -> None:
    assert load_model(exported, CPU).class_names == NAMES


def test_without_a_vocabulary_the_export_has_no_class_names(finished_search: FinishedSearch, tmp_path: Path) -> None:
    finished_search.export(tmp_path / "out", class_names=None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"classes.csv"}
    assert load_model(tmp_path / "out", CPU).class_names is None


def test_the_card_shows_scores_on_whole_splits_if_they_are_known(
    finished_search: FinishedSearch, tmp_path: Path
) -> None:
    scores = {"gap": 0.8125, "hit_at_1": 0.5, "perr": 0.5, "map": 0.5, "num_videos": 3501.0}
    finished_search.export(tmp_path / "out", metrics={"validate": scores})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| all of validate | 0.8125 | 0.5000 | 0.5000 | 0.5000 | 3,501 |" in card
    assert "| validation sample during training | " in card
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["validate"] == scores
    assert stored["training"]["gap"] == finished_search.best.score


def test_an_export_needs_no_shards_if_the_search_stored_its_statistics(own: FinishedSearch, tmp_path: Path) -> None:
    keep_statistics(own.directory, own.data.statistics)
    nowhere = replace(own.experiment.data, train="nowhere/*", validate="nowhere/*")
    told: list[str] = []
    own.export(tmp_path / "out", experiment=replace(own.experiment, data=nowhere), print_line=told.append)
    assert "34 random videos" in told[0] and "real" not in told[0]


def test_statistics_of_other_shards_are_refused(own: FinishedSearch, tmp_path: Path) -> None:
    other = replace(own.experiment.data, train=own.experiment.data.validate)
    with pytest.raises(SearchError, match="the training shards have changed"):
        own.export(tmp_path / "out", experiment=replace(own.experiment, data=other))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the target


def test_an_earlier_export_of_the_same_trial_is_replaced_and_reported(
    finished_search: FinishedSearch, tmp_path: Path
) -> None:
    told: list[str] = []
    finished_search.export(tmp_path / "out", print_line=told.append)
    assert "replaced" not in told[-1]
    (tmp_path / "out" / "notes.txt").write_text("of the old one")
    finished_search.export(tmp_path / "out", print_line=told.append)
    assert "replaced an earlier export of the same trial" in told[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_of_another_trial_is_not_replaced(finished_search: FinishedSearch, tmp_path: Path) -> None:
    finished_search.export(tmp_path / "out", trial=finished_search.search.trials["trial-0"])
    with pytest.raises(ModelFolderError, match=r"exists and holds trial 000 of search .* folder for trial 001"):
        finished_search.export(tmp_path / "out")
    assert load_model(tmp_path / "out", CPU).config["trial"]["number"] == 0


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_file_or_folder_that_is_not_an_export_is_not_replaced(
    finished_search: FinishedSearch, tmp_path: Path, kind: str
) -> None:
    stranger = tmp_path / "out" / "thesis.tex" if kind == "folder" else tmp_path / "out"
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("three years")
    with pytest.raises(ModelFolderError, match="exists and is not an exported model"):
        finished_search.export(tmp_path / "out")
    assert stranger.read_text() == "three years"


def test_an_empty_folder_is_filled(finished_search: FinishedSearch, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    finished_search.export(tmp_path / "out")
    load_model(tmp_path / "out", CPU)


def test_an_export_that_fails_leaves_nothing(
    finished_search: FinishedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_card, "render", fail)
    with pytest.raises(OSError, match="No space"):
        finished_search.export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_gives_other_logits_is_refused(
    finished_search: FinishedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_others(folder: Path, contents: Contents) -> None:
        bias = contents.model.get_parameter("head.bias")
        bias.add_(1e-3)
        weights.FORMAT.write(folder, contents)
        bias.sub_(1e-3)

    _, *others = writer.FORMATS
    monkeypatch.setattr(writer, "FORMATS", (replace(weights.FORMAT, write=write_others), *others))
    with pytest.raises(ModelFolderError, match=r"model\.safetensors: gives other logits .* nothing was exported"):
        finished_search.export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- the checkpoint


def test_the_best_checkpoint_is_the_complete_one_of_the_best_epoch(own: FinishedSearch) -> None:
    trial = replace(own.best, reports={1: {"gap": 0.6}, 2: {"gap": 0.5}, 3: {"gap": 0.9}})  # epoch 3 has no checkpoint
    folder = own.directory / "trials" / "trial-1"
    assert best_checkpoint(own.directory, trial) == folder / "epoch-0001"
    weights = folder / "epoch-0001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # as after a worker was killed while it copied
    assert best_checkpoint(own.directory, trial) == folder / "epoch-0002"
    trial.reports.pop(2)  # as after a driver was killed before it got the report
    with pytest.raises(NothingToExport, match=r"trial 001 of search .* has no undamaged checkpoint"):
        best_checkpoint(own.directory, trial)


def test_of_epochs_with_equal_scores_the_first_stored_one_is_the_best(own: FinishedSearch) -> None:
    trial = replace(own.best, reports={1: {"gap": 0.6}, 2: {"gap": 0.6}})
    assert best_checkpoint(own.directory, trial).name == "epoch-0001"
    shutil.rmtree(own.directory / "trials" / "trial-1" / "epoch-0001")
    assert best_checkpoint(own.directory, trial).name == "epoch-0002"


def test_a_lost_best_checkpoint_is_reported(own: FinishedSearch, tmp_path: Path) -> None:
    shutil.rmtree(own.directory / "trials" / "trial-1" / "epoch-0002")
    told: list[str] = []
    own.export(tmp_path / "out", print_line=told.append)
    assert "best epoch 2 is missing or damaged; exporting epoch 1" in told[0]


def test_if_the_best_checkpoint_is_damaged_the_next_best_is_exported_and_reported(
    own: FinishedSearch, tmp_path: Path
) -> None:
    folder = own.directory / "trials" / "trial-1"
    flip(folder / "epoch-0002" / "model.safetensors")
    told: list[str] = []
    own.export(tmp_path / "out", print_line=told.append)
    assert told[0].startswith(f"{folder / 'epoch-0002' / 'model.safetensors'}: damaged")
    assert "best epoch 2 is missing or damaged; exporting epoch 1 with GAP" in told[1]
    flip(folder / "epoch-0001" / "model.safetensors")
    with pytest.raises(NothingToExport, match=r"trial 001 of search .* has no undamaged checkpoint"):
        own.export(tmp_path / "out")


def test_if_the_best_trial_is_damaged_the_next_best_is_exported_and_reported(
    own: FinishedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (own.directory / "trials" / "trial-1").glob("*/model.safetensors"):
        flip(path)
    monkeypatch.chdir(own.folder)
    run_command("tuner.best", "--storage", str(own.storage), "--export", tmp_path / "out")
    told = capsys.readouterr().out
    assert "trial 001 of search" in told and "has no undamaged checkpoint" in told
    assert f"the next best trial is trial 000 with GAP {own.search.finished[1].score:.4f}" in told
    assert "exported trial 000" in told and (tmp_path / "out" / "model.pt2").exists()


def test_discarding_the_training_states_of_an_ended_trial_keeps_its_weights(own: FinishedSearch) -> None:
    discard_training_states(own.directory, own.best)
    kept = {path.name for path in (own.directory / "trials" / "trial-1").rglob("*.*")}
    assert kept == {"model.safetensors", "checkpoint.json"}
    checkpoint.check(best_checkpoint(own.directory, own.best), weights_only=True)
    own.load_best()


def test_loading_a_trial_draws_no_random_number(finished_search: FinishedSearch) -> None:
    before = torch.get_rng_state()
    assert not finished_search.load_best().training
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty_list(path: Path) -> None:
    path.write_text("[]")


def nothing(path: Path) -> None:
    path.write_text("")


def too_deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def unknown_dtype(path: Path) -> None:
    """A change of the configuration by hand, with checksums that match it."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float8"}))
    (path.parent / "SHA256SUMS").unlink()
    layout.write_checksums(path.parent)


def newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("config.json", Path.unlink, r"is not an exported model \(config.json: No such file"),
    ("config.json", flip, "config.json: is damaged"),
    ("config.json", cut, "config.json: is damaged"),
    ("config.json", newer, "written in format 99, but this version of the program reads formats 2 and 3"),
    ("config.json", empty_list, "config.json: is damaged or not of an exported model"),
    ("config.json", too_deep, "config.json: is damaged or not of an exported model"),
    ("config.json", unknown_dtype, "dtype must be one of float16, float32, but got 'float8'"),
    ("model.safetensors", Path.unlink, "model.safetensors: is missing"),
    ("model.safetensors", flip, "model.safetensors: is damaged"),
    ("model.safetensors", cut, "model.safetensors: is damaged"),
    ("classes.csv", flip, "classes.csv: is damaged"),
    ("classes.csv", Path.unlink, "classes.csv: is missing"),
    ("SHA256SUMS", Path.unlink, "SHA256SUMS: is missing"),
    ("SHA256SUMS", nothing, "config.json: is damaged"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence(
    exported: Path,
    finished_search: FinishedSearch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    told: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    damage(folder / name)
    arguments = (folder, "--data", finished_search.validate)
    assert re.search(told, refusal_of(capsys, "tuner.evaluate", *arguments))
    assert re.search(told, refusal_of(capsys, "tuner.predict", *arguments, "--output", tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not an exported model"):
        load_model(tmp_path / "nowhere", CPU)


def test_weights_of_another_model_are_refused(exported: Path, tmp_path: Path) -> None:
    """config.json was edited by hand, and its checksum as well."""
    shutil.copytree(exported, tmp_path / "model")
    told = json.loads((tmp_path / "model" / "config.json").read_text())
    told["model"]["hidden"] = 99
    (tmp_path / "model" / "config.json").write_text(json.dumps(told))
    digest = hashlib.sha256((tmp_path / "model" / "config.json").read_bytes()).hexdigest()
    sums = (tmp_path / "model" / "SHA256SUMS").read_text()
    (tmp_path / "model" / "SHA256SUMS").write_text(re.sub(r"\w+(?=  config.json)", digest, sums))
    with pytest.raises(ModelFolderError, match="cannot build the model"):
        load_model(tmp_path / "model", CPU)


def test_other_users_can_read_an_export(exported: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert exported.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o666 & ~umask}
