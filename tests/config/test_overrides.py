"""`--set path=value`: what an override reaches, and how a wrong one is refused."""

# ruff: noqa: E501  (a mistake is asserted as the one line that it is)

from typing import Any

import pytest

from tests.support.experiments import CHOICE_OF_BLOCKS, VALID, Load, mistakes


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.epochs=5", ("training", "epochs"), 5),
        ("optimizer.learning_rate=1e-3", ("optimizer", "learning_rate"), 0.001),
        ("optimizer.schedule.kind=cosine", ("optimizer", "schedule", "kind"), "cosine"),
        ("model.dropout={quniform: [0, 0.4, 0.2]}", ("model", "dropout"), 0.2),
        ("model.dropout.default=0.3", ("model", "dropout"), 0.3),
        ("loss={l2: 7}", ("loss", "l2"), 7.0),
        ("loss.bootstrap=fixed", ("loss", "bootstrap"), "fixed"),
        ("loss.l1=2", ("loss", "l1"), 2.0),
    ],
)
def test_an_override_replaces_a_setting_a_distribution_or_a_block(
    load_text: Load, override: str, path: tuple[str, ...], value: Any
) -> None:
    experiment = load_text(VALID, overrides=(override,))
    found: Any = experiment.trial_config(experiment.space.defaults())
    for name in path:
        found = getattr(found, name)
    assert found == value


def test_an_override_addresses_an_option_by_its_label_and_keeps_the_default(load_text: Load) -> None:
    text = CHOICE_OF_BLOCKS.replace("loguniform: [1e-3, 10]}]", "loguniform: [1e-3, 10]}], default: loguniform")
    experiment = load_text(text, overrides=("optimizer.sgd.momentum=0.6", "loss.l1.loguniform=3"))
    assert experiment.space.names() == ["model.dropout", "optimizer", "optimizer.adam.learning_rate", "loss.l1"]
    assert experiment.space.defaults()["loss.l1"] == "3"
    values = {"model.dropout": 0.5, "optimizer": "sgd", "loss.l1": "0"}
    assert experiment.trial_config(values).optimizer.momentum == 0.6


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.dropot=0.1", "tiny.model.dropot: unknown key; did you mean 'dropout'?"),
        ("dropout=0.1", "tiny.dropout: unknown key; did you mean 'model.dropout'?"),
        ("learning_rat=0.1", "tiny.learning_rat: unknown key; did you mean 'optimizer.learning_rate'?"),
        ("serch.trials=1", "tiny.serch: unknown key; did you mean 'search'?"),
        ("model.dropout=2", "tiny.model.dropout: dropout must be in [0, 1), but got 2.0"),
        ("model.dropout={uniform: [1, 0]}", "tiny.model.dropout: the low end must be below the high end, but got [1.0, 0.0]"),
        ("training.epochs.x=3", "training.epochs is a value and has no 'x' (got 2)"),
        ("loss.l1.x=3", "loss.l1 is a choice, so name its option; one of: loss.l1.0, loss.l1.loguniform"),
        ("training.epochs", "must have the form path=value, such as training.epochs=5"),
        ("model.dropout={", "is not valid yaml: expected the node content, but found '<stream end>'"),
        ("data.train=${UNSET_VARIABLE}", "tiny.data.train: the environment variable UNSET_VARIABLE is not set; set it, or write ${UNSET_VARIABLE:-a default}"),
    ],
)  # fmt: skip
def test_the_error_of_an_override_quotes_it_as_typed(load_text: Load, override: str, line: str) -> None:
    assert mistakes(load_text, VALID, overrides=(override,)) == [f"--set {override}: {line}"]


def test_an_override_that_omits_the_option_of_a_choice_lists_the_options(load_text: Load) -> None:
    assert mistakes(load_text, CHOICE_OF_BLOCKS, overrides=("optimizer.momentum=0.5",)) == [
        "--set optimizer.momentum=0.5: optimizer is a choice, so name its option; "
        "one of: optimizer.adam.momentum, optimizer.sgd.momentum"
    ]
