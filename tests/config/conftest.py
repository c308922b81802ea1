"""Reads a text as experiments.yaml."""

from pathlib import Path

import pytest

from tests.support.experiments import Load
from tuner.config.experiment import Experiment, load


@pytest.fixture
def load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a text as if it were experiments.yaml of the working directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str, name: str | None = None, overrides: tuple[str, ...] = ()) -> Experiment:
        Path("experiments.yaml").write_text(text, encoding="utf-8")
        return load(Path("experiments.yaml"), name, overrides)

    return load_text
