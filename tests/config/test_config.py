"""Reading experiments.yaml: what is read, what is refused, and the words of the errors."""

# ruff: noqa: E501  (a mistake is asserted as the one line that it is)

import pickle
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cache.recipe import find_shards
from models.losses import DistillConfig, LossConfig
from models.video.fused_mlp import FusedMLPConfig
from tests.support.experiments import CHOICE_OF_BLOCKS, ROOT, VALID, Load, mistakes
from tuner.config import reading
from tuner.config.experiment import Experiment, load
from tuner.config.notes import notes
from tuner.config.search import PlateauConfig, ResourcesConfig, SearchConfig
from tuner.config.yaml_tree import dump, parse
from tuner.errors import ConfigError

MISTAKES = [
    # keys
    ("momentum", "kind: adam", "kind: sgd\n      momentun: 0.9", "10: tiny.optimizer.momentun: unknown key; did you mean 'momentum'?"),
    ("block", "search:", "serch:", "14: tiny.serch: unknown key; did you mean 'search'?"),
    ("elsewhere", "{trials: 2}", "{dropout: 0.5}", "14: tiny.search.dropout: unknown key; did you mean 'model.dropout'?"),
    ("far off", "{trials: 2}", "{zzz: 0.5}", "14: tiny.search.zzz: unknown key; known are trials, first, warm_start, sampler, scheduler, time_budget, goal, epoch_timeout, max_concurrent, trials_per_worker, keep, plateau, failures"),
    ("missing", "      kind: adam\n", "", "8: tiny.optimizer.kind: is missing"),
    ("missing within", "{trials: 2}", "{plateau: {min_gain: 0.1}}", "14: tiny.search.plateau.trials: is missing"),
    ("twice", "train: t", "train: s*\n      train: t", "6: experiments.tiny.data.train: duplicate key (first in line 5)"),
    # words
    ("kind", "kind: fused_mlp", "kind: mooc", "7: tiny.model.kind: 'mooc' is not one of: logistic, linear, mixture_of_experts, fused_mlp, average_logistic, dbof, soft_dbof, gated_dbof, lstm, gru, netvlad, netrvlad, netfv, nextvlad, attention"),
    ("kind of no word", "kind: adam", "kind: 3", "9: tiny.optimizer.kind: must be one of: rmsprop_tf, adam, adamw, sgd, lars (got 3)"),
    ("pipeline", "search: {trials: 2}", "pipeline: contrast", "14: tiny.pipeline: 'contrast' is not one of: supervised, contrastive; did you mean 'contrastive'?"),
    # types
    ("text", "batch_size: 16", "batch_size: '16'", "13: tiny.training.batch_size: must be a whole number (got '16'); leave the quotes out"),
    ("bool", "batch_size: 16", "batch_size: true", "13: tiny.training.batch_size: must be a whole number (got true)"),
    ("bool float", "l1: {choice: [0, {loguniform: [1e-3, 10]}]}", "l1: false", "12: tiny.loss.l1: must be a number (got false)"),
    ("fraction", "batch_size: 16", "batch_size: 16.0", "13: tiny.training.batch_size: must be a whole number (got 16.0); write 16"),
    ("null", "batch_size: 16", "batch_size:", "13: tiny.training.batch_size: must be a whole number (got null)"),
    ("word or number", "{trials: 2}", "{max_concurrent: many}", "14: tiny.search.max_concurrent: must be auto or a whole number (got many)"),
    ("text or list", "train: t*.tfrecord", "train: 5", "5: tiny.data.train: must be text or a list (got 5)"),
    ("in a list", "train: t*.tfrecord", "train: [a, 5]", "5: tiny.data.train.1: must be text (got 5)"),
    ("no block", "{trials: 2}", "{scheduler: asha}", "14: tiny.search.scheduler: must be a block of settings (got asha); write {kind: asha}"),
    ("no block at all", "{trials: 2}", "5", "14: tiny.search: must be a block of settings (got 5)"),
    # ranges
    ("range", "{trials: 2}", "{trials: 0}", "14: tiny.search.trials: trials must be from 1 to 1,000,000, but got 0"),
    ("range within", "mean_rgb: 8", "mean_rgb: 0", "7: tiny.model.towers.mean_rgb: towers.mean_rgb must be from 1 to 16,777,216, but got 0"),
    ("no worker", "{trials: 2}", "{trials: 2}\n    resources: {workers: 0}", "15: tiny.resources.workers: workers must be from 1 to 10,000, but got 0"),
    ("elastic workers", "{trials: 2}", "{trials: 2}\n    resources: {workers: {min: 3, max: 2}}", "15: tiny.resources.workers.min: min must be from 1 to max, which is 2 (got 3)"),
    ("half a worker", "{trials: 2}", "{trials: 2}\n    resources: {workers: 1.5}", "15: tiny.resources.workers: must be a whole number or a block of settings (got 1.5)"),
    ("workers without a video", "{trials: 2}", "{trials: 2}\n    resources: {workers: {max: 2000}}", "15: tiny.resources.workers: training.batch_size 16 has no video for each of 2000 workers"),
    ("more than one GPU but not two", "{trials: 2}", "{trials: 2}\n    resources: {gpu: 1.5}", "15: tiny.resources.gpu: gpu must be a share of one GPU, at least 0.01, or a whole number of them, but got 1.5"),
    ("duration", "{trials: 2}", "{time_budget: 4x}", "14: tiny.search.time_budget: must be a number of seconds, or a time such as 90s, 30m, 4h or 1h30m (got 4x)"),
    ("end of a range", "[0.2, 0.7]", "[0.2, 1.7]", "7: tiny.model.dropout: dropout must be in [0, 1), but got 1.7"),
    ("frames of videos", "epochs: 2}", "epochs: 2, frames: {sampling: random}}", "13: tiny.training.frames: has no effect where data.level is video"),
    ("level", "train: t*.tfrecord", "level: clip\n      train: t*.tfrecord", "5: tiny.data.level: 'clip' is not one of: video, frame, segment"),
    ("max_frames", "train: t*.tfrecord", "max_frames: 0\n      train: t*.tfrecord", "5: tiny.data.max_frames: max_frames must be from 1 to 16,777,216, but got 0"),
    ("towers", "mean_audio: 8", "mean_adio: 8", "7: tiny.model.towers: must have a tower for each of data.features: mean_rgb, mean_audio (got mean_rgb, mean_adio)"),
    ("frames", "kind: fused_mlp, towers: {mean_rgb: 8, mean_audio: 8}, dropout: {uniform: [0.2, 0.7]}", "kind: attention", "7: tiny.model.kind: attention needs frames; set data.level to frame or segment (got video)"),
    # distributions
    ("misspelt", "uniform: [0.2", "unifrom: [0.2", "7: tiny.model.dropout: unknown distribution 'unifrom'; did you mean 'uniform'?"),
    ("empty range", "[0.2, 0.7]", "[0.7, 0.2]", "7: tiny.model.dropout: the low end must be below the high end, but got [0.7, 0.2]"),
    ("option", "epochs: 2", "epochs: {choice: [2, '3']}", "13: tiny.training.epochs: must be a whole number (got '3'); leave the quotes out"),
    ("of the data", "train: t*.tfrecord", "train: {choice: [a, b]}", "5: tiny.data.train: cannot be searched, because trials on different data do not compare; only model, optimizer, loss, training can (got choice)"),
    ("of the search", "{trials: 2}", "{sampler: {choice: [{kind: tpe}]}}", "14: tiny.search.sampler: cannot be searched, because all trials share it; only model, optimizer, loss, training can (got choice)"),
    # cures
    ("two numbers", "{uniform: [0.2, 0.7]}", "[0.2, 0.7]", "7: tiny.model.dropout: must be a number (got [0.2, 0.7]); write {uniform: [0.2, 0.7]} for a range, {choice: [0.2, 0.7]} for a choice"),
    ("three numbers", "batch_size: 16", "batch_size: [8, 16, 32]", "13: tiny.training.batch_size: must be a whole number (got [8, 16, 32]); write {choice: [8, 16, 32]} for a choice"),
    ("no brackets", "uniform: [0.2, 0.7]", "uniform: 0.2, 0.7", "7: tiny.model.dropout: uniform takes no other key than default (got '0.7'); write {uniform: [0.2, 0.7]}"),
    ("numbers for whole ones", "batch_size: 16", "batch_size: {uniform: [64, 256]}", "13: tiny.training.batch_size: must be a whole number (got {uniform: [64, 256]}); write {int: [64, 256]}"),
    ("the same on a log scale", "batch_size: 16", "batch_size: {loguniform: [64, 256]}", "13: tiny.training.batch_size: must be a whole number (got {loguniform: [64, 256]}); write {logint: [64, 256]}"),
    ("named ends", "{uniform: [0.2, 0.7]}", "{min: 0.2, max: 0.7}", "7: tiny.model.dropout: must be a number (got {min: 0.2, max: 0.7}); write a range as {uniform: [low, high]}"),
    ("dots", "{uniform: [0.2, 0.7]}", "0.2..0.7", "7: tiny.model.dropout: must be a number (got 0.2..0.7); write {uniform: [0.2, 0.7]} for a range"),
    ("a call", "{uniform: [0.2, 0.7]}", "uniform(0.2)", "7: tiny.model.dropout: must be a number (got uniform(0.2)); write a distribution as {uniform: [...]}"),
    ("percent", "{uniform: [0.2, 0.7]}", "50%", "7: tiny.model.dropout: must be a number (got 50%); write 0.5"),
    ("a decimal comma", "dropout: {uniform: [0.2, 0.7]}", "dropout: 0,5", "7: tiny.model.5: unknown key; write a list in brackets, as in [0.2, 0.7], and a number with a point, as in 0.5"),
    ("quotes", "batch_size: 16", "batch_size: '16'", "13: tiny.training.batch_size: must be a whole number (got '16'); leave the quotes out"),
    ("an exponent", "batch_size: 16", "batch_size: 1e3", "13: tiny.training.batch_size: must be a whole number (got 1000.0); write 1000"),
    ("no space", "epochs: 2", "epochs:2", "13: tiny.training.epochs:2: unknown key; write a space after the colon, as in epochs: value"),
    ("capitals", "kind: adam", "kind: adamW", "9: tiny.optimizer.kind: 'adamW' is not one of: rmsprop_tf, adam, adamw, sgd, lars; did you mean 'adamw'?"),
    ("a word for a block", "{trials: 2}", "{sampler: tpe}", "14: tiny.search.sampler: must be a block of settings (got tpe); write {kind: tpe}"),
    ("a key of the file", "experiments:", "experiment:", "2: experiment: unknown key; a file has the keys default and experiments; did you mean 'experiments'?"),
    # environment
    ("unset", "train: t*", "train: ${UNSET_VARIABLE}/*", "5: tiny.data.train: the environment variable UNSET_VARIABLE is not set; set it, or write ${UNSET_VARIABLE:-a default}"),
    ("no variable", "train: t*", "train: ${1}/*", "5: tiny.data.train: write a variable as ${NAME} or ${NAME:-default} (got ${1}/*.tfrecord)"),
    # yaml
    ("a batch of one", "batch_size: 16", "batch_size: 1", "13: tiny.training.batch_size: BatchNorm needs at least 2 videos at a time, to compare them (got 1)"),
    ("parts of one", "batch_size: 16", "batch_size: 16, accumulate: 16", "13: tiny.training.batch_size: BatchNorm needs at least 2 videos at a time, to compare them (got 16 in 16 parts)"),
    ("tab", "      l1:", "\tl1:", "12: is not valid yaml: found character '\\t' that cannot start any token; indent with spaces, not with tabs"),
    ("braces", "train: t*.tfrecord", "train: {a: ${HOME}}", "5: is not valid yaml: expected ',' or '}', but got '{'; quote the value with ${...}"),
    ("alias", "epochs: 2", "epochs: *nowhere", "13: is not valid yaml: found undefined alias 'nowhere'"),
    # the file
    ("default", "default: tiny", "default: tinny", "1: default: there is no experiment tinny (experiments: tiny, broken)"),
    ("top", "default: tiny", "defualt: tiny", "1: defualt: unknown key; a file has the keys default and experiments; did you mean 'default'?"),
    ("name", "  broken:\n    data:", "  br/ken:\n    data:", "15: experiments.br/ken: a name has letters, digits, and _ . - between them"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_an_error_has_file_line_path_and_value(load_text: Load, old: str, new: str, line: str) -> None:
    assert old in VALID
    assert mistakes(load_text, VALID.replace(old, new, 1)) == [f"experiments.yaml:{line}"]


def test_all_errors_of_an_experiment_are_reported_together_in_file_order(load_text: Load) -> None:
    text = (
        VALID.replace("[0.2, 0.7]", "[0.7, 0.2]")
        .replace("kind: adam", "kind: adamm")
        .replace("l1:", "l3: 1\n      l1:")
    )
    text = text.replace("batch_size: 16", "batch_size: '16'").replace("trials: 2", "trials: -1")
    text = text.replace("t*.tfrecord", "${UNSET_VARIABLE}")
    assert [line.split(": ")[:2] for line in mistakes(load_text, text)] == [
        ["experiments.yaml:5", "tiny.data.train"],
        ["experiments.yaml:7", "tiny.model.dropout"],
        ["experiments.yaml:9", "tiny.optimizer.kind"],
        ["experiments.yaml:12", "tiny.loss.l3"],
        ["experiments.yaml:14", "tiny.training.batch_size"],
        ["experiments.yaml:15", "tiny.search.trials"],
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("momentum: {", "momentun: {", "13: tiny.optimizer.momentun: unknown key; did you mean 'momentum'?"),
        ("[0.5, 0.9]", "[0.5, 1.5]", "13: tiny.optimizer.momentum: momentum must be in [0, 1), but got 1.5"),
        ("[0.5, 0.9]", "[0.9]", "13: tiny.optimizer.sgd.momentum: uniform takes [low, high] (got [0.9])"),
        ("learning_rate: 0.1", "learning_rate: -1", "12: tiny.optimizer.learning_rate: learning_rate must be from 1e-30 to 1e+38, but got -1.0"),
        ("kind: sgd", "kind: sdg", "11: tiny.optimizer.kind: 'sdg' is not one of: rmsprop_tf, adam, adamw, sgd, lars; did you mean 'sgd'?"),
    ],
)  # fmt: skip
def test_the_error_of_an_option_names_its_line(load_text: Load, old: str, new: str, line: str) -> None:
    assert mistakes(load_text, CHOICE_OF_BLOCKS.replace(old, new)) == [f"experiments.yaml:{line}"]


def test_the_error_of_an_unknown_experiment_has_the_nearest_name_and_all_names(load_text: Load) -> None:
    told = "experiments.yaml: there is no experiment 'tinny'; did you mean 'tiny'? (experiments: tiny, broken)"
    assert mistakes(load_text, VALID, "tinny") == [told]
    no_default = VALID.removeprefix("default: tiny\n")
    assert load_text(no_default, "tiny").name == "tiny"
    assert mistakes(load_text, no_default) == [
        "experiments.yaml: names no default experiment; name one (experiments: tiny, broken)"
    ]


@pytest.mark.parametrize("text", ["", "[]", "experiments:", "experiments: {}"])
def test_a_file_without_experiments_is_refused(load_text: Load, text: str) -> None:
    assert mistakes(load_text, text)[0].endswith(
        "the file has no experiments; write them as `experiments: {name: {...}}`"
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file or directory"):
        load(tmp_path / "nowhere.yaml", None)
    (tmp_path / "latin.yaml").write_bytes("größe: 1".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 text \(byte 2\)"):
        load(tmp_path / "latin.yaml", None)


def test_only_the_chosen_experiment_needs_its_environment_variables(
    load_text: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSET_VARIABLE", raising=False)
    assert load_text(VALID).name == "tiny"
    monkeypatch.setenv("SHARDS", "/shards")
    monkeypatch.setenv("EMPTY", "")
    text = VALID.replace("t*.tfrecord", "${SHARDS}/${SPLIT:-train}*.tfrecord").replace("v*.tfrecord", "${EMPTY:-/v}/v*")
    data = load_text(text).data
    assert (data.train, data.validate) == ("/shards/train*.tfrecord", "/v/v*")


@pytest.mark.parametrize(
    "override", ["data.train=s3://AKIA:hunter2@bucket/train*", "data.test=[a*, 'https://h/a?sig=hunter2']"]
)
def test_credentials_are_refused_and_not_shown(load_text: Load, override: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_text(VALID, overrides=(override,))
    assert "holds credentials, which every search would store" in str(told.value)
    assert f"tiny.{override.split('=')[0]}" in str(told.value) and "hunter2" not in str(told.value)


def test_credentials_from_the_environment_are_refused_as_well(load_text: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDS", "s3://AKIA:hunter2@bucket")
    with pytest.raises(ConfigError, match=r"tiny\.data\.train: s3://\*\*\*@bucket/t\*\S* holds credentials") as told:
        load_text(VALID.replace("train: t*", "train: ${SHARDS}/t*"))
    assert "hunter2" not in str(told.value)


def test_an_unquoted_variable_may_be_a_number_and_a_quoted_one_is_text(load_text: Load) -> None:
    text = VALID.replace("training: {batch_size: 16, epochs: 2}", "training:\n      batch_size: ${BATCH:-32}")
    experiment = load_text(text)
    assert experiment.trial_config(experiment.space.defaults()).training.batch_size == 32
    assert "got '32'" in mistakes(load_text, text.replace("${BATCH:-32}", '"${BATCH:-32}"'))[0]


def test_relative_paths_are_relative_to_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep [1]").mkdir()
    monkeypatch.chdir(tmp_path)
    text = VALID.replace("t*.tfrecord", "[t*.tfrecord, ../s/*, gs://bucket/*, /abs/*]").replace(
        "v*.tfrecord", "v*\n      vocabulary: names.csv\n      cache_folder: cache\n      sample: {directory: here}"
    )
    Path("deep [1]/experiments.yaml").write_text(text)
    data = load(Path("deep [1]/experiments.yaml"), None).data
    deep = str(tmp_path / "deep [1]")
    assert data.train == (f"{deep}/t*.tfrecord", f"{tmp_path}/s/*", "gs://bucket/*", "/abs/*")
    assert (data.validate, data.vocabulary, data.cache_folder) == (f"{deep}/v*", f"{deep}/names.csv", f"{deep}/cache")
    assert data.sample is not None and data.sample.directory == f"{deep}/here"
    Path(deep, "t1.tfrecord").touch()
    assert find_shards(data.train[0]) == [f"{deep}/t1.tfrecord"]  # the name of the folder is no pattern


def test_a_merged_anchor_is_overridden_by_the_keys_of_the_block(load_text: Load) -> None:
    text = VALID.replace("    search: {trials: 2}", "    search: &mine {trials: 2, trials_per_worker: 5}") + (
        "  other:\n    data: {train: a, validate: b}\n    model: {kind: fused_mlp, towers: {mean_rgb: 8, mean_audio: 8}}\n"
        "    optimizer: {kind: adam, learning_rate: 1}\n    search: {<<: *mine, trials: 3}\n"
    )
    assert load_text(text, "other").search == SearchConfig(trials=3, trials_per_worker=5)


def test_a_python_tag_is_refused(load_text: Load) -> None:
    found = mistakes(load_text, VALID.replace("epochs: 2", "epochs: !!python/name:os.system 2"))
    assert found[0].startswith("experiments.yaml:13: experiments.tiny.training.epochs: '2' cannot be read as")


# Experiment


@pytest.mark.parametrize("text", [VALID, CHOICE_OF_BLOCKS], ids=["plain", "choice of blocks"])
def test_the_stored_copy_reads_back_to_an_equal_experiment(load_text: Load, text: str) -> None:
    text = text.replace("{trials: 2}", "{trials: 2, time_budget: 1h30m, plateau: {trials: 5}}")
    experiment = load_text(text)
    again = Experiment.from_yaml(experiment.to_yaml(), experiment.name, experiment.file)
    assert again == experiment
    assert again.to_yaml() == experiment.to_yaml()
    assert again.differences(experiment) == []
    assert again.space.names() == experiment.space.names()
    assert again.search.time_budget == 5400
    assert again.search.plateau == PlateauConfig(trials=5)
    assert pickle.loads(pickle.dumps(experiment)) == experiment


def test_the_stored_copy_is_complete_and_keeps_distributions_as_written(load_text: Load) -> None:
    text = load_text(CHOICE_OF_BLOCKS).to_yaml()
    blocks = parse(text, "stored").plain()["experiments"]["tiny"]
    assert blocks["model"]["dropout"] == {"uniform": [0.2, 0.7]}
    assert blocks["model"]["hidden"] == 1200
    assert blocks["loss"]["l1"] == {"choice": [0, {"loguniform": [0.001, 10]}]}
    assert [option["clip"]["kind"] for option in blocks["optimizer"]["choice"]] == ["none", "none"]
    assert blocks["resources"] == {"gpu": "auto", "cpu": "auto", "workers": 1, "startable": None}
    assert load_stored(text) == blocks


def load_stored(text: str) -> Any:
    """The blocks of a stored copy after it was run as an experiments.yaml of its own."""
    experiment = Experiment.from_yaml(text, "tiny", Path("elsewhere.yaml"))
    return parse(experiment.to_yaml(), "stored").plain()["experiments"]["tiny"]


def test_a_variable_in_the_stored_copy_is_not_expanded_again(load_text: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "/a/${B}")
    experiment = load_text(VALID.replace("t*.tfrecord", "${ODD}/*"))
    assert experiment.data.train == "/a/${B}/*"
    assert Experiment.from_yaml(experiment.to_yaml(), "tiny", experiment.file) == experiment


def test_filling_in_defaults_keeps_the_labels_of_options_without_a_kind(load_text: Load) -> None:
    text = VALID.replace(
        "kind: adam", "kind: adam\n      schedule: {choice: [{warmup: 0}, {warmup: 0.1}], default: {warmup: 0.1}}"
    )
    experiment = load_text(text)
    assert experiment.space.defaults()["optimizer.schedule"] == "warmup: 0.1"
    assert Experiment.from_yaml(experiment.to_yaml(), "tiny", experiment.file) == experiment


def test_differences_are_readable_lines(load_text: Load) -> None:
    old = load_text(VALID)
    new = load_text(VALID, overrides=("search.trials=8", "model.dropout=0.3", "search.plateau={trials: 3}"))
    assert old.differences(new) == [
        "model.dropout: {uniform: [0.2, 0.7]} -> 0.3",
        "search.trials: 2 -> 8",
        "search.plateau: null -> {trials: 3, min_gain: 0.0}",
    ]


def test_a_number_in_another_notation_is_not_a_difference(load_text: Load) -> None:
    stored = Experiment.from_yaml(load_text(VALID).to_yaml(), "tiny", Path("experiments.yaml"))
    assert stored.differences(load_text(VALID, overrides=("loss.l2=0", "search.scheduler.reduction=3"))) == []


def test_a_suggestion_becomes_a_trial_configuration(load_text: Load) -> None:
    experiment = load_text(VALID)
    values = {
        "model.dropout": 0.25,
        "optimizer.learning_rate": 0.002,
        "loss.l1": "loguniform",
        "loss.l1.loguniform": 0.5,
    }
    config = experiment.trial_config(values)
    assert (config.model.dropout, config.optimizer.learning_rate, config.loss.l1) == (0.25, 0.002, 0.5)
    assert config.model.towers == {"mean_rgb": 8, "mean_audio": 8}
    with pytest.raises(ConfigError, match=r"model\.dropout: not in \[0\.2, 0\.7\] \(got 0\.9\)"):
        experiment.trial_config({**values, "model.dropout": 0.9})


@pytest.mark.parametrize(
    ("epochs", "most"),
    [("3", 3), ("{int: [2, 9]}", 9), ("{choice: [2, 5, 4]}", 5), ("{choice: [2, {int: [3, 7]}]}", 7)],
)
def test_max_epochs_is_the_upper_end_of_the_searched_epochs(load_text: Load, epochs: str, most: int) -> None:
    assert load_text(VALID, overrides=(f"training.epochs={epochs}",)).max_epochs == most


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("4h", 14400), ("1h30m", 5400)]
)
def test_a_time_budget_is_seconds_or_a_duration(load_text: Load, written: str, seconds: float) -> None:
    assert load_text(VALID, overrides=(f"search.time_budget={written}",)).search.time_budget == seconds


def test_settings_of_earlier_versions_that_had_one_value_are_read_and_another_value_is_refused(load_text: Load) -> None:
    old = VALID.replace("{trials: 2}", "{trials: 2, metric: gap_best, mode: max, overlap: true}")
    assert load_text(old) == load_text(VALID)
    (line,) = mistakes(load_text, old.replace("gap_best", "map"))
    assert line.startswith("experiments.yaml:14: tiny.search.metric: unknown key; ")


def test_a_folder_at_data_cache_is_taken_for_the_folder_of_the_cache_and_told(load_text: Load) -> None:
    def with_cache(line: str) -> str:
        return VALID.replace("validate: v*.tfrecord", f"validate: v*.tfrecord\n      {line}")

    old = load_text(with_cache("cache: /big/disk"))
    assert old == load_text(with_cache("cache_folder: /big/disk")) and old.data.cache == "node"
    (told,) = notes(old)
    assert told.startswith(
        "experiments.yaml:7: tiny.data.cache: is taken for data.cache_folder, as in earlier versions"
    )
    for line in ("cache: null", "cache: node"):
        assert load_text(with_cache(line)) == load_text(VALID) and not notes(load_text(with_cache(line)))
    assert load_text(with_cache("cache: cache")).data.cache_folder == str(Path("cache").resolve())
    for written in ("nodes", "5"):
        (line,) = mistakes(load_text, with_cache(f"cache: {written}"))
        assert line.startswith("experiments.yaml:7: tiny.data.cache: ") and "one of: node, share, none" in line
        assert line.endswith("; a folder is named by data.cache_folder")


@pytest.mark.parametrize(
    "lines, mistake",
    [
        (("cache: share",), "data.cache: share needs several workers for a trial; set resources.workers, or cache to"),
        (
            ("cache: none", "resident: true"),
            "data.resident: resident: true has no effect with cache: none, which keeps no",
        ),
        (("buffer: 100",), "data.buffer: buffer has an effect with cache: none only, but cache is node; leave it out"),
        (("cache: none", "buffer: 0"), "data.buffer: buffer must be from 1 to "),
        (
            ("cache_folder: s3://bucket/cache",),
            "data.cache_folder: cache_folder must be a local folder, as every machine has",
        ),
    ],
)
def test_what_does_not_fit_data_cache_is_told(load_text: Load, lines: tuple[str, ...], mistake: str) -> None:
    written = "".join(f"\n      {line}" for line in lines)
    (line,) = mistakes(load_text, VALID.replace("validate: v*.tfrecord", f"validate: v*.tfrecord{written}"))
    assert f"tiny.{mistake}" in line


def test_several_workers_can_share_a_cache(load_text: Load) -> None:
    text = VALID.replace("validate: v*.tfrecord", "validate: v*.tfrecord\n      cache: share")
    for workers in ("2", "{min: 1, max: 3}"):
        assert load_text(text, overrides=(f"resources.workers={workers}",)).data.cache == "share"


def test_an_omitted_setting_has_its_default(load_text: Load) -> None:
    text = VALID.replace("    search: {trials: 2}\n", "").replace("    training: {batch_size: 16, epochs: 2}\n", "")
    experiment = load_text(text)
    assert (experiment.search, experiment.resources) == (SearchConfig(), ResourcesConfig())
    assert experiment.max_epochs == 20


def test_a_block_with_only_comments_is_an_empty_block(load_text: Load) -> None:
    text = VALID.replace("    loss:\n      l1:", "    loss:\n      # l1:").replace("search: {trials: 2}", "search:")
    experiment = load_text(text)
    assert experiment.search == SearchConfig()
    assert experiment.trial_config(experiment.space.defaults()).loss == LossConfig()


def with_loss(loss: str) -> str:
    return VALID.replace("      l1: {choice: [0, {loguniform: [1e-3, 10]}]}\n", f"      {loss}\n")


def test_the_error_of_an_unknown_layer_lists_the_layers_of_the_model(load_text: Load) -> None:
    (line,) = mistakes(load_text, with_loss("layers: {haed: {l2: 1e-8}}"))
    assert "tiny.loss: layers: the model has no layer 'haed'; those with weight matrices are encoder.towers.0" in line
    experiment = load_text(with_loss("layers: {head: {l2: {loguniform: [1e-8, 1e-6]}}}"))
    assert experiment.trial_config(experiment.space.defaults()).loss.layers["head"].l2 == pytest.approx(1e-7)


def test_weighted_hamming_needs_a_vocabulary(load_text: Load) -> None:
    (line,) = mistakes(load_text, with_loss("kind: weighted_hamming"))
    assert "tiny.loss: kind weighted_hamming needs the counts of data.vocabulary, which is not set" in line
    experiment = load_text(with_loss("kind: weighted_hamming"), overrides=("data.vocabulary=v.csv",))
    assert experiment.trial_config(experiment.space.defaults()).loss.kind == "weighted_hamming"


@pytest.mark.parametrize("written", ["t.safetensors", "{choice: [t.safetensors, u.safetensors]}"])
def test_the_path_of_teacher_predictions_is_relative_to_the_yaml(load_text: Load, tmp_path: Path, written: str) -> None:
    experiment = load_text(with_loss(f"distill: {{predictions: {written}, weight: {{uniform: [0.3, 0.7]}}}}"))
    distill = experiment.trial_config(experiment.space.defaults()).loss.distill
    assert distill == DistillConfig(predictions=str(tmp_path / "t.safetensors"), weight=0.5)


def drawn(low: float, high: float, *values: Any) -> st.SearchStrategy[Any]:
    """A value, or one of the distributions over it."""
    plain = st.sampled_from(values or (low, high))
    both_ends = st.sampled_from(["uniform", "loguniform"]).map(lambda kind: {kind: [low, high]})
    number = plain | both_ends | st.just({"uniform": [low, high], "default": high})
    return number | st.lists(number, min_size=1, max_size=3, unique_by=repr).map(lambda options: {"choice": options})


def whole(low: int, high: int) -> st.SearchStrategy[Any]:
    both_ends = st.sampled_from(["int", "logint"]).map(lambda kind: {kind: [low, high]})
    return st.integers(low, high) | both_ends | st.just({"choice": [high, {"int": [low, high]}], "default": "int"})


ADAM = st.fixed_dictionaries(
    {"kind": st.just("adam"), "learning_rate": drawn(1e-4, 1e-2)},
    optional={"beta1": drawn(0.5, 0.9), "schedule": st.just({"kind": {"choice": ["cosine", "constant"]}})},
)
SGD = st.fixed_dictionaries(
    {"kind": st.just("sgd"), "learning_rate": drawn(1e-3, 1.0)}, optional={"momentum": drawn(0.1, 0.9)}
)
EXPERIMENTS = st.fixed_dictionaries(
    {
        "data": st.just({"train": "/t*", "validate": ["/v*", "/w*"]}),
        "model": st.fixed_dictionaries(
            {
                "kind": st.just("fused_mlp"),
                "towers": st.fixed_dictionaries({"mean_rgb": whole(2, 8), "mean_audio": whole(1, 4)}),
            },
            optional={"dropout": drawn(0.1, 0.7), "prior_bias": st.just({"choice": [True, False]})},
        ),
        "optimizer": ADAM | SGD | st.builds(lambda adam, sgd: {"choice": [adam, sgd]}, ADAM, SGD),
    },
    optional={
        "loss": st.fixed_dictionaries({}, optional={"l1": drawn(1e-3, 10.0, 0), "l2": drawn(1e-2, 1e3, 0, 1)}),
        "training": st.fixed_dictionaries({}, optional={"epochs": whole(1, 9), "seed": st.just("per_trial")}),
        "search": st.fixed_dictionaries({}, optional={"time_budget": st.sampled_from([60, 1.5, "4h", None])}),
    },
)


@settings(max_examples=60, deadline=None)
@given(blocks=EXPERIMENTS)
def test_any_experiment_reads_back_and_each_of_its_corners_is_a_trial(blocks: dict[str, Any]) -> None:
    experiment = Experiment.from_yaml(dump({"experiments": {"any": blocks}}), "any", Path("experiments.yaml"))
    again = Experiment.from_yaml(experiment.to_yaml(), "any", Path("experiments.yaml"))
    assert again == experiment
    assert again.differences(experiment) == []
    for values in (experiment.space.defaults(), *experiment.space.corners()):
        config = experiment.trial_config(values)
        assert config == again.trial_config(values)
        assert config.training.epochs <= experiment.max_epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherConfig:
    """A second model, which only these tests have."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "video"
    kind: Literal["other"] = "other"
    depth: int = 3


def test_a_block_of_several_kinds_is_read_by_its_kind(load_text: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reading.SEARCHABLE["supervised"], "model", (FusedMLPConfig, OtherConfig))
    other = VALID.replace(
        "{kind: fused_mlp, towers: {mean_rgb: 8, mean_audio: 8}, dropout: {uniform: [0.2, 0.7]}}", "MODEL"
    )
    both = "{choice: [{kind: other}, {kind: fused_mlp, towers: {mean_rgb: 8, mean_audio: 8}}]}"
    experiment = load_text(other.replace("MODEL", both))
    assert experiment.space.tree.plain()["model"]["choice"][0] == {"kind": "other", "depth": 3}
    assert Experiment.from_yaml(experiment.to_yaml(), "tiny", experiment.file) == experiment
    for written, line in {
        "{kind: othr}": "7: tiny.model.kind: 'othr' is not one of: fused_mlp, other; did you mean 'other'?",
        "{depth: 2}": "7: tiny.model.kind: is missing; one of: fused_mlp, other",
        "{kind: other, depht: 2}": "7: tiny.model.depht: unknown key; did you mean 'depth'?",
        "{kind: other, depth: x}": "7: tiny.model.depth: must be a whole number (got x)",
        "5": "7: tiny.model: must be a block of settings (got 5)",
    }.items():
        assert mistakes(load_text, other.replace("MODEL", written)) == [f"experiments.yaml:{line}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThirdConfig:
    """A third model, with other settings than the second one."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "video"
    kind: Literal["third"] = "third"
    width: int = 4


def test_a_kind_may_be_searched_if_the_omitted_settings_differ(
    load_text: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading.SEARCHABLE["supervised"], "model", (OtherConfig, ThirdConfig))
    start, end = VALID.index("    model:"), VALID.index("    optimizer:")
    experiment = load_text(VALID[:start] + "    model: {kind: {choice: [other, third]}}\n" + VALID[end:])
    models = [experiment.trial_config(values).model for values in experiment.space.corners()]
    assert {type(model) for model in models} == {OtherConfig, ThirdConfig}


def test_every_settings_class_refuses_unknown_keys() -> None:
    blocks = [*reading.SEARCHABLE["supervised"].values(), *reading.SEARCHABLE["contrastive"].values()]
    pending: list[Any] = [cls for classes in blocks for cls in classes] + list(reading.FIXED.values())
    seen = set()
    while pending:
        cls = pending.pop()
        if cls not in seen:
            seen.add(cls)
            assert cls.__pydantic_config__ == {"extra": "forbid"}, cls
            pending += [c for name in cls.__dataclass_fields__ if is_dataclass(c := reading._class_below(cls, name))]
    assert len(seen) > 10


# This project's own file


@pytest.mark.parametrize("name", ["quickstart", "fused_mlp", "yt8m_small", "contrastive", "yt8m_small_contrastive"])
def test_every_experiment_of_this_project_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YT8M_DIR", "/shards")
    experiment = load(ROOT / "experiments.yaml", name)
    assert Experiment.from_yaml(experiment.to_yaml(), name, experiment.file) == experiment
    assert experiment.trial_config(experiment.space.defaults())


def test_workers_of_a_trial_are_a_number_or_a_range(load_text: Load) -> None:
    several = load_text(VALID.replace("{trials: 2}", "{trials: 2}\n    resources: {workers: 4}"))
    assert (several.resources.min_workers, several.resources.max_workers) == (4, 4)
    elastic = load_text(VALID.replace("{trials: 2}", "{trials: 2}\n    resources: {workers: {min: 2, max: 4}}"))
    assert (elastic.resources.min_workers, elastic.resources.max_workers) == (2, 4)
    assert Experiment.from_yaml(elastic.to_yaml(), "tiny", elastic.file) == elastic
    assert several.differences(elastic) == ["resources.workers: 4 -> {min: 2, max: 4}"]


def test_conditional_penalties_have_documented_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YT8M_DIR", "/shards")
    names = load(ROOT / "experiments.yaml", "fused_mlp").space.names()
    assert {"loss.l1", "loss.l1.loguniform", "optimizer.learning_rate", "loss.pos_weight_power"} <= set(names)
