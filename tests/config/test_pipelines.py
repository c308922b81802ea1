"""Experiments of the contrastive pipeline and of the closed form: what is read and what is refused."""

from collections.abc import Callable

import pytest

from tests.support.experiments import ROOT, Load, mistakes
from tuner.config.experiment import Experiment, load
from tuner.errors import ConfigError


@pytest.fixture
def contrastive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    return lambda *overrides: load(ROOT / "experiments.yaml", "contrastive", overrides)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("pretrain.kind=moco_v4", "contrastive.pretrain.kind: 'moco_v4' is not one of: moco_v1, moco_v2, moco_v3"),
        ("pretrain.temprature=0.3", "contrastive.pretrain.temprature: unknown key; did you mean 'temperature'?"),
        ("training.epochs=3", "contrastive.training.epochs: unknown key; did you mean 'pretrain.epochs'?"),
        ("loss.l2=3", "contrastive.loss: is a block of pipeline supervised; pipeline contrastive has model, "),
        ("pretrain.views.corruption={mean_rgb: 0.1}", "contrastive.pretrain.views.corruption: pretrain.views.corrupt"),
        ("pretrain.batch_norm_groups=1", "contrastive.pretrain.batch_norm_groups: pretrain.batch_norm_groups must be"),
        (
            "resources.workers=2",
            "contrastive.resources.workers: pipeline: contrastive trains on one worker; set resources.",
        ),
        ("probe.dropout=0.5", "contrastive.probe.dropout: dropout has no effect on a linear probe, only on fine_tune"),
        ("model.kind=logistic", "contrastive.model.kind: 'logistic' is not one of: fused_mlp"),
        ("data.label_fraction=0", "contrastive.data.label_fraction: label_fraction must be in (0, 1], but got 0"),
    ],
)
def test_the_error_of_a_contrastive_experiment_names_its_place(
    contrastive: Callable[..., Experiment], override: str, line: str
) -> None:
    with pytest.raises(ConfigError) as told:
        contrastive(override)
    (found,) = str(told.value).splitlines()
    assert found.startswith(f"--set {override}: {line}")


def test_pretraining_takes_only_video_level_data(contrastive: Callable[..., Experiment]) -> None:
    with pytest.raises(ConfigError, match=r"contrastive\.pipeline: contrastive learns from features of whole videos"):
        contrastive("data.level=frame", "data.features={mean_rgb: 1024, mean_audio: 128}")


def test_the_epochs_of_a_contrastive_experiment_cover_both_phases(contrastive: Callable[..., Experiment]) -> None:
    assert contrastive("pretrain.epochs={int: [2, 5]}", "probe.epochs=3").max_epochs == 8


def test_methods_of_pretraining_may_be_searched(contrastive: Callable[..., Experiment]) -> None:
    both = "{choice: [{kind: moco_v2, queue: 100, epochs: 2}, {kind: moco_v3, hidden: 64, epochs: 3}]}"
    experiment = contrastive(f"pretrain={both}")
    kinds = {experiment.trial_config(corner).pretrain.kind for corner in experiment.space.corners()}
    assert kinds == {"moco_v2", "moco_v3"} and experiment.max_epochs == 3 + 6
    assert Experiment.from_yaml(experiment.to_yaml(), "contrastive", experiment.file) == experiment


# The closed form

LINEAR = """\
default: linear
experiments:
  linear:
    data: {train: t*.tfrecord, validate: v*.tfrecord}
    model: {kind: linear, penalty: {loguniform: [0.1, 10]}}
"""


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("optimizer={kind: adam, learning_rate: 0.1}", "optimizer"),
        ("training.epochs={int: [2, 3]}", "training.epochs"),
        ("training={precision: fp32, batch_size: 64}", "training.batch_size"),
        ("training.seed=per_trial", "training.seed"),
    ],
)
def test_settings_of_gradient_steps_are_refused_if_every_trial_is_fitted_in_closed_form(
    load_text: Load, override: str, path: str
) -> None:
    why = "has no effect on model.kind linear, which is fitted in closed form; leave it out"
    assert mistakes(load_text, LINEAR, overrides=(override,)) == [f"--set {override}: linear.{path}: {why}"]


def test_a_closed_form_model_needs_no_optimizer(load_text: Load) -> None:
    experiment = load_text(LINEAR, overrides=("training.precision=fp32",))
    assert experiment.trial_config(experiment.space.defaults()).optimizer is None and experiment.max_epochs == 1
    assert Experiment.from_yaml(experiment.to_yaml(), "linear", experiment.file) == experiment


def test_a_choice_with_a_closed_form_model_keeps_the_settings_of_the_other_models(load_text: Load) -> None:
    models = "model={choice: [{kind: linear}, {kind: logistic}]}"
    steps = ("optimizer={kind: adam, learning_rate: 0.1}", "training.epochs=3")
    assert load_text(LINEAR, overrides=(models, *steps)).max_epochs == 3
    assert "linear.optimizer.kind: is missing" in mistakes(load_text, LINEAR, overrides=(models,))[0]
