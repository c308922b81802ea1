"""Small shards, and a folder for their caches."""

from pathlib import Path

import pytest

from tests.support.cached import make_videos, write


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Five shards of three to seven videos."""
    (tmp_path / "shards").mkdir()
    return [write(tmp_path / "shards" / f"train{i}.tfrecord", make_videos(3 + i, seed=i)) for i in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of all caches."""
    return tmp_path / "caches"
