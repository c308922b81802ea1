"""The way to a Ray that runs elsewhere."""

import socket

import pytest

from tuner.errors import SearchError
from tuner.workers import connection


def test_a_cluster_that_is_gone_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        refused = pytest.raises(SearchError, match=f"no Ray answers at {address} .*--address local")
        with refused, connection.connect(address):
            pass
    assert capsys.readouterr().out == f"connecting to the Ray at {address}\n"


def test_a_head_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "JOIN_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # it takes connections, and says nothing
        address = f"127.0.0.1:{hangs.getsockname()[1]}"
        with pytest.raises(SearchError, match=f"no Ray answers at {address} .timed out"), connection.connect(address):
            pass
