"""The tags of a run: the versions of the software and the commit."""

from pathlib import Path

import pytest
import torch

from tuner.tracking.tags import environment_tags


def test_every_run_has_tags_with_its_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = environment_tags(Path(__file__).parent)
    assert torch.__version__.partition("+")[0] == tags["version.torch"].partition("+")[0]  # metadata may lack "+cpu"
    assert tags["git_dirty"] in ("true", "false") and len(tags["git_commit"]) == 40
    assert "git_commit" not in environment_tags(tmp_path)  # no repository
    monkeypatch.setenv("PATH", "")
    assert "git_commit" not in environment_tags(Path(__file__).parent)  # no git
