"""The reference of all settings: complete, true, and the same in docs/settings.md and in `tune.py --explain`."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from models.contrastive.methods import METHODS
from models.losses.registry import LOSSES
from models.optim.registry import OPTIMIZERS
from tests.support.workplace import PROJECT
from tuner.config.reading import FIXED, SEARCHABLE
from tuner.config.reference import explain, page, settings
from tuner.errors import ConfigError


def test_the_page_is_up_to_date_with_the_code() -> None:
    assert (PROJECT / "docs" / "settings.md").read_text() == page(), (
        "make it anew: python -m tuner.config.reference > docs/settings.md"
    )


def test_every_field_of_every_block_is_a_setting_with_a_type() -> None:
    paths = {setting.path for setting in settings()}
    blocks = list(FIXED.items())
    for searchable in SEARCHABLE.values():
        blocks += [(name, cls) for name, classes in searchable.items() for cls in classes]
    for name, cls in blocks:
        assert {f"{name}.{field.name}" for field in fields(cls)} <= paths
    assert all(setting.type for setting in settings())


def test_every_setting_has_a_meaning() -> None:
    assert [setting.name for setting in settings() if not setting.meaning] == []  # write a comment at the field


def test_the_meaning_of_a_setting_that_may_be_null_states_the_default_of_each_kind() -> None:
    text = {setting.path: setting.text for setting in settings()}
    defaults: list[tuple[str, Any]] = [
        *((f"optimizer.{name}", value) for kind in OPTIMIZERS.values() for name, value in kind.settings.items()),
        *((f"loss.{name}", value) for loss in LOSSES.values() for name, value in loss.settings.items()),
        *((f"pretrain.{field.name}", field.default) for method in METHODS.values() for field in fields(method)),
    ]
    for path, default in defaults:
        shown = default if isinstance(default, str) else f"{default:g}"
        assert path == "pretrain.kind" or shown in re.findall(r"[\w.-]*\w", text[path]), f"{path}: {shown}"


@pytest.mark.parametrize(
    ("name", "documented"),
    [
        ("training.batch_size", "from 1 to 16,777,216"),
        ("data.label_fraction", "in (0, 1]"),
        ("search.scheduler.reduction", "from 1.01 to 1,000"),
        ("model.fused_mlp.dropout", "in [0, 1)"),
        ("model.fused_mlp.towers", "from 1 to 16,777,216"),
        ("optimizer.schedule.milestones", "in (0, 1)"),
        ("training.average.half_life", "from 0.001 to 1e+09"),
        ("training.seed", "from 0 to 4,294,967,295"),
    ],
)
def test_a_range_is_the_one_that_is_checked(name: str, documented: str) -> None:
    entry = next(setting for setting in settings() if setting.name == name)
    assert str(entry.range) == documented and f" Must be {documented}." in entry.text


def test_a_setting_is_explained_by_its_path() -> None:
    head, _, entry, *text = explain("optimizer.learning_rate").splitlines()
    assert head == "optimizer.learning_rate: a setting of pipeline supervised"
    assert entry == "optimizer.learning_rate  number, required"
    assert "Must be from 1e-30 to 1e+38." in " ".join(text)


def test_a_block_is_explained_with_all_of_its_settings() -> None:
    told = explain("search.scheduler")
    assert told.startswith("search.scheduler: a block of pipeline supervised and contrastive\n")
    for name in ("kind", "grace", "reduction"):
        assert f"\nsearch.scheduler.{name}  " in told


def test_a_kind_of_model_is_a_block() -> None:
    told = explain("model.mixture_of_experts")
    assert "model.mixture_of_experts.mixtures  whole number, default 2" in told and "model.fused_mlp" not in told


def test_a_yaml_path_finds_every_kind_that_has_the_setting() -> None:
    told = explain("model.hidden")
    assert "model.fused_mlp.hidden  " in told and "model.netvlad.hidden  " in told


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("optimizer.learnig_rate", "did you mean 'optimizer.learning_rate'?"),
        ("learning_rate", "did you mean 'optimizer.learning_rate'?"),
        ("nothing.like.it", "docs/settings.md lists all settings"),
    ],
)
def test_an_unknown_path_is_one_sentence_with_a_hint(path: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        explain(path)
    assert str(error.value).startswith(f"--explain {path}: there is no such setting; ")
    assert str(error.value).endswith(hint) and "\n" not in str(error.value)


def test_the_command_explains_a_setting_and_refuses_an_unknown_one() -> None:
    def tune(path: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "tune.py", "--explain", path], cwd=PROJECT, capture_output=True, text=True, check=False
        )

    known, unknown = tune("search.scheduler"), tune("search.sheduler")
    assert known.returncode == 0 and known.stdout == explain("search.scheduler") + "\n"
    assert unknown.returncode == 2 and unknown.stdout == ""
    assert unknown.stderr.endswith("there is no such setting; did you mean 'search.scheduler'?\n")


def test_the_blocks_of_the_reference_are_the_dataclasses() -> None:
    assert all(is_dataclass(setting.block) for setting in settings() if setting.block is not None)
    assert {setting.name for setting in settings() if setting.type == "block"} >= {"data", "search", "training.frames"}
