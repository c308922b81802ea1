"""Whether the nodes share the storage of a search: without Ray, whose answers the tests give."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from tuner.cluster import shared_storage
from tuner.errors import SearchError

HERE, OTHER = "a" * 56, "b" * 56


class Cluster:
    """Stands for `ray`: two nodes, of which one does not answer, and may be dead."""

    def __init__(self, *, dies: bool) -> None:
        self.dead = False
        self._dies = dies

    def nodes(self) -> list[dict[str, Any]]:
        alive = {HERE: True, OTHER: not self.dead}
        return [{"NodeID": id, "NodeManagerHostname": f"host-{id[0]}", "Alive": alive[id]} for id in alive]

    def remote(self, **options: Any) -> Any:
        def task(function: Any) -> Any:
            def on(scheduling_strategy: Any) -> Any:
                return SimpleNamespace(remote=lambda probe: (scheduling_strategy.node_id, function(probe)))

            return SimpleNamespace(options=on)

        return task

    def get(self, answer: Any, timeout: float) -> Any:
        node, seen = answer
        if node == HERE:
            return seen
        self.dead = self._dies
        raise RayError("the node does not exist any more")


def test_a_node_that_dies_during_the_check_needs_no_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_storage, "ray", Cluster(dies=True))
    shared_storage.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_lives_and_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_storage, "ray", Cluster(dies=False))
    with pytest.raises(SearchError, match="cannot check whether host-b shares it"):
        shared_storage.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
