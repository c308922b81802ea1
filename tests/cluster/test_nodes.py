"""The nodes that an autoscaler may still start."""

import pytest

from tuner.cluster.nodes import startable_by
from tuner.cluster.resources import Node, plan, still_startable
from tuner.config.search import ResourcesConfig

CPU = Node(cpus=2, gpus=0)
GPU = Node(cpus=8, gpus=1)


@pytest.mark.parametrize(
    "alive, limit, expected",
    [
        ([CPU], 10, 3),  # scaled to zero: all three can still be started
        ([CPU, GPU], 9, 2),
        ([CPU, GPU, GPU, GPU], 7, 0),
        ([CPU, GPU, GPU, GPU, GPU], 7, 0),  # one more than the autoscaler may start
        ([CPU], 2, 2),  # no more nodes than the cluster may have in total
        ([CPU], -1, 0),
    ],
)
def test_nodes_that_the_autoscaler_may_still_start_are_counted(alive: list[Node], limit: int, expected: int) -> None:
    assert still_startable(alive, [(GPU, 3)], limit) == [GPU] * expected


def test_a_cluster_file_lists_the_nodes_that_may_be_started() -> None:
    bootstrap = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}, "max_workers": 0},
            "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
            "large": {"resources": {"CPU": 32, "GPU": 4}},
            "local.cluster.node": {"resources": {}, "max_workers": 2},  # machines reached by ssh: none is ever started
        },
    }
    large = Node(cpus=32, gpus=4)
    assert startable_by(bootstrap, [CPU]) == [GPU, GPU, GPU, large]
    assert startable_by(bootstrap, [CPU, GPU, GPU]) == [GPU, large]
    plans = [plan(ResourcesConfig(gpu=gpu), [CPU, *startable_by(bootstrap, [CPU])]) for gpu in ("auto", 1)]
    assert [made.slots for made in plans] == [7, 7]
