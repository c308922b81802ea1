"""How many trials run at a time while nodes come and go."""

import pytest

from tuner.cluster.resources import Node, plan
from tuner.config.search import ResourcesConfig
from tuner.search import concurrency
from tuner.search.concurrency import Concurrency

CPU = Node(cpus=2, gpus=0)
GPU = Node(cpus=8, gpus=1)


class Machines:
    """Nodes that a test adds and removes; every call sees them as they are."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = list(nodes)
        self.printed: list[str] = []

    def concurrency(self, limit: int | None = None) -> Concurrency:
        return Concurrency(plan(ResourcesConfig(), self.nodes), limit, lambda: self.nodes, self.printed.append)


@pytest.fixture(autouse=True)
def checked_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "CHECK_SECONDS", 0.0)


def test_it_follows_the_cluster_and_prints_each_change_once() -> None:
    machines = Machines(GPU, GPU)
    trials = machines.concurrency()
    assert trials() == 2 and machines.printed == []
    machines.nodes.append(GPU)
    assert trials() == 3 and trials() == 3
    machines.nodes[:] = [GPU]
    assert trials() == 1
    assert [line.split("now holds ")[1] for line in machines.printed] == ["3 trials at a time", "1 trial at a time"]


def test_a_search_waits_for_a_cluster_without_a_node() -> None:
    machines = Machines(GPU)
    trials = machines.concurrency()
    assert trials() == 1
    machines.nodes.clear()
    assert trials() == 1
    assert machines.printed == ["the cluster has changed: it now holds no trial; waiting for nodes"]


def test_a_limit_is_kept() -> None:
    machines = Machines(GPU, GPU, GPU)
    assert machines.concurrency(limit=2)() == 2
    machines.nodes.append(GPU)
    assert machines.concurrency(limit=2)() == 2


def test_the_nodes_are_queried_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "CHECK_SECONDS", 3600.0)
    machines = Machines(GPU)
    trials = machines.concurrency()
    machines.nodes.append(GPU)
    assert trials() == 1
