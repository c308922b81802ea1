"""The tags that say what a run was made with."""

from pathlib import Path

import pytest
import torch

from tuner.tracking.tags import environment_tags


def test_every_run_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = environment_tags(Path(__file__).parent)
    assert tags["version.torch"] == torch.__version__
    assert tags["git_dirty"] in ("true", "false") and len(tags["git_commit"]) == 40
    assert "git_commit" not in environment_tags(tmp_path)  # no repository
    monkeypatch.setenv("PATH", "")
    assert "git_commit" not in environment_tags(Path(__file__).parent)  # no git
