"""What a driver that was killed has left on a Ray that goes on."""

import pytest

from tuner.storage.journal import Attempt
from tuner.workers import connection, placement


def test_groups_of_killed_drivers_are_removed_from_this_cluster_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(placement, "remove", removed.append)
    earlier = [
        Attempt(cluster="session-1", job="01", scratch=None),
        Attempt(cluster="session-0", job="02", scratch=None),
        Attempt(cluster="session-1", job="03", scratch=None),
    ]
    connection.clean_up(earlier, Attempt(cluster="session-1", job="04", scratch=None))
    assert removed == ["01", "03"]
