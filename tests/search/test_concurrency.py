"""How many trials run at a time while nodes come and go."""

import pytest

from tuner.cluster import connection as cluster
from tuner.cluster.resources import Node, plan, still_startable
from tuner.config.experiment import ResourcesConfig
from tuner.search import concurrency as room
from tuner.search.concurrency import Room

CPU = Node(cpus=2, gpus=0)
GPU = Node(cpus=8, gpus=1)


class Machines:
    """Nodes that a test adds and takes, seen at every look."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = list(nodes)
        self.told: list[str] = []

    def room(self, most: int | None = None, overlap: bool = False) -> Room:
        return Room(plan(ResourcesConfig(), self.nodes), most, overlap, lambda: self.nodes, self.told.append)


@pytest.fixture(autouse=True)
def at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.0)


def test_it_follows_the_cluster_and_says_so_once() -> None:
    machines = Machines(GPU, GPU)
    trials = machines.room()
    assert trials() == 2 and machines.told == []
    machines.nodes.append(GPU)
    assert trials() == 3 and trials() == 3
    machines.nodes[:] = [GPU]
    assert trials() == 1
    assert [told.split("holds ")[1] for told in machines.told] == ["3 trials at a time", "1 trial at a time"]


def test_a_cluster_without_a_node_is_waited_for() -> None:
    machines = Machines(GPU)
    trials = machines.room(overlap=True)
    assert trials() == 2
    machines.nodes.clear()
    assert trials() == 2  # one that waits, and one behind it
    assert machines.told == ["the cluster has changed: it holds no trial: it waits for nodes"]


def test_a_bound_stays() -> None:
    machines = Machines(GPU, GPU, GPU)
    assert machines.room(most=2, overlap=True)() == 2  # a third would find a slot: it would not wait for one
    assert machines.room(most=3, overlap=True)() == 4
    machines.nodes.append(GPU)
    assert machines.room(most=2)() == 2


def test_nodes_are_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_SECONDS", 3600.0)
    machines = Machines(GPU)
    trials = machines.room()
    machines.nodes.append(GPU)
    assert trials() == 1


@pytest.mark.parametrize(
    "alive, most, expected",
    [
        ([CPU], 10, 3),  # scaled to zero: all three are still to come
        ([CPU, GPU], 9, 2),
        ([CPU, GPU, GPU, GPU], 7, 0),
        ([CPU, GPU, GPU, GPU, GPU], 7, 0),  # one more than the autoscaler knows of
        ([CPU], 2, 2),  # no more nodes than the cluster may have in all
        ([CPU], -1, 0),
    ],
)
def test_what_the_autoscaler_may_start_counts_beside_what_is_there(alive: list[Node], most: int, expected: int) -> None:
    assert still_startable(alive, [(GPU, 3)], most) == [GPU] * expected


def test_a_cluster_file_tells_what_may_be_started() -> None:
    bootstrap = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}, "max_workers": 0},
            "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
            "large": {"resources": {"CPU": 32, "GPU": 4}},
            "local.cluster.node": {"resources": {}, "max_workers": 2},  # machines by ssh: none is ever started
        },
    }
    large = Node(cpus=32, gpus=4)
    assert cluster.startable_by(bootstrap, [CPU]) == [GPU, GPU, GPU, large]
    assert cluster.startable_by(bootstrap, [CPU, GPU, GPU]) == [GPU, large]
    plans = [plan(ResourcesConfig(gpu=gpu), [CPU, *cluster.startable_by(bootstrap, [CPU])]) for gpu in ("auto", 1)]
    assert [made.slots for made in plans] == [7, 7]
