"""Placement groups without Ray: those of dead actors are removed, whatever happens meanwhile."""

import threading

import pytest

from tuner import background
from tuner.workers import placement
from tuner.workers.ray_internals import Group


def test_placement_groups_are_freed_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, asked, said = [Group(b"1", "dead")], [0], []
    freed = threading.Event()

    def groups_of(job: str) -> list[Group]:
        asked[0] += 1
        if asked[0] == 1:
            raise RuntimeError("GCS is away")
        return list(groups)

    def remove(group: Group) -> None:
        groups.remove(group)
        freed.set()

    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(placement, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(placement.ray_internals, "placement_groups", groups_of)
    monkeypatch.setattr(placement.ray_internals, "is_dead", lambda actor: True)
    monkeypatch.setattr(placement.ray_internals, "remove_group", remove)
    with placement.freed("job", said.append):
        assert freed.wait(20)
    assert len(said) == 1 and "freeing placement groups failed (RuntimeError: GCS is away)" in said[0]
