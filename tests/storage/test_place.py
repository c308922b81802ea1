"""Where a command looks when it is not told."""

import os
import sys
from pathlib import Path

import pytest

from tuner.errors import ConfigError
from tuner.storage import place as paths


def test_storage_is_as_given_then_the_variable_then_beside_the_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "experiments.yaml"
    assert paths.storage(None, file) == tmp_path / "storage"
    monkeypatch.setenv("TUNER_STORAGE", str(tmp_path / "shared"))
    assert paths.storage(None, file) == tmp_path / "shared"
    assert paths.storage(str(tmp_path / "mine"), file) == tmp_path / "mine"
    assert paths.storage(f"file://{tmp_path}", file) == tmp_path


def test_a_store_is_a_place_with_the_methods_of_a_folder() -> None:
    place = paths.storage("memory://searches/", None)
    assert paths.is_url(place) and str(place / "tiny") == "memory://searches/tiny"
    assert not paths.is_url(Path("searches"))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (
            "sftp://host/searches",
            "--storage sftp://host/searches: must be a folder, or a URL that begins with",
        ),
        ("s3://me:secret@bucket/searches", r"--storage: s3://\*\*\*@bucket/searches holds credentials"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused(named: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        paths.storage(named, None)
    assert "secret" not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r'--storage gs://bucket: pip install "video-tuner\[gcs\]" first'):
        paths.storage("gs://bucket", None)


def test_the_yaml_is_the_one_given_then_the_one_here_then_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.experiments_file(None) == paths.PROJECT / "experiments.yaml"
    (tmp_path / "experiments.yaml").touch()
    assert paths.experiments_file(None) == tmp_path / "experiments.yaml"
    assert paths.experiments_file(Path("other.yaml")) == Path("other.yaml")


def test_a_printed_command_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "bin" / "python"
    own.parent.mkdir()
    own.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", os.defpath)
    assert paths.program("python") == str(own)
    monkeypatch.chdir(tmp_path)
    assert paths.program("python") == "bin/python"
    monkeypatch.setenv("PATH", str(own.parent))
    assert paths.program("python") == "python"
