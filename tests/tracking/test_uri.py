"""Which MLflow a search writes to."""

from pathlib import Path

import pytest

from tuner.errors import ConfigError, SearchError
from tuner.tracking.uri import choose_uri, default_uri


def test_the_database_is_beside_the_yaml_unless_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert default_uri(tmp_path) == "http://server:5000"


def test_a_resumed_search_keeps_its_tracking_uri_unless_the_command_line_gives_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_uri(None, None, tmp_path) == default_uri(tmp_path)
    assert choose_uri(None, "http://stored", tmp_path) == "http://stored"
    assert choose_uri("http://given", "http://stored", tmp_path) == "http://given"
    with pytest.raises(ConfigError, match=r"--tracking-uri: http://\*\*\*@given holds credentials"):
        choose_uri("http://user:hunter2@given", None, tmp_path)
    with pytest.raises(SearchError, match=r"MLflow at http://\*\*\*@stored: credentials are not stored"):
        choose_uri(None, "http://***@stored", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@stored")
    assert choose_uri(None, "http://***@stored", tmp_path) == "http://user:hunter2@stored"
    assert choose_uri(None, "sqlite:///there.db", tmp_path) == "sqlite:///there.db"
