"""What a trial holds of a cluster, by the table."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import ResourcesConfig
from tuner.errors import ConfigError
from tuner.resources import Node, Plan, describe, plan


def settled(nodes: list[tuple[float, float]], **config: Any) -> tuple[float, float, int]:
    """(GPUs, CPUs) of a worker and how many fit, on nodes of (CPUs, GPUs)."""
    made = plan(ResourcesConfig(**config), [Node(cpus=cpus, gpus=gpus) for cpus, gpus in nodes])
    return made.resources.gpu, made.resources.cpu, made.slots


@pytest.mark.parametrize(
    "nodes, config, expected",
    [
        # auto, without a GPU: a node is one trial's
        ([(2, 0)], {}, (0, 2, 1)),
        ([(8, 0), (8, 0)], {}, (0, 8, 2)),
        ([(8, 0), (4, 0)], {}, (0, 4, 3)),  # the smallest node holds one too
        # auto, with GPUs: one each, and its share of the CPUs
        ([(32, 8)], {}, (1, 4, 8)),
        ([(16, 1), (16, 1)], {}, (1, 16, 2)),
        ([(4, 8)], {}, (1, 1, 4)),  # fewer CPUs than GPUs
        ([(2, 0), (16, 4)], {}, (1, 4, 4)),  # a head without a GPU trains nothing
        ([(16, 4), (8, 4)], {}, (1, 2, 8)),
        # fractions
        ([(16, 2)], {"gpu": 0.5}, (0.5, 4, 4)),
        ([(16, 1)], {"gpu": 0.25, "cpu": 2}, (0.25, 2, 4)),
        ([(2, 0)], {"cpu": 0.5}, (0, 0.5, 4)),
        # several GPUs for a worker
        ([(16, 4)], {"gpu": 2}, (2, 8, 2)),
        ([(16, 5)], {"gpu": 2}, (2, 8, 2)),
        # as told
        ([(8, 2)], {"gpu": 0}, (0, 8, 1)),
        ([(8, 2)], {"gpu": 0, "cpu": 1}, (0, 1, 8)),
        ([(8, 2)], {"cpu": 1}, (1, 1, 2)),  # the GPUs are out first
        ([(8, 0), (3, 0)], {"cpu": 2}, (0, 2, 5)),
        ([(4, 0), (1, 0)], {"cpu": 2}, (0, 2, 2)),  # one node is too small
    ],
)
def test_plan(nodes: list[tuple[float, float]], config: dict[str, Any], expected: tuple[float, float, int]) -> None:
    assert settled(nodes, **config) == expected


@pytest.mark.parametrize(
    "nodes, config, need, have",
    [
        ([(8, 0)], {"gpu": 1}, "1 GPUs", "8 CPUs and 0 GPUs"),
        ([(8, 1)], {"cpu": 16}, "16 CPUs", "8 CPUs and 1 GPUs"),
        ([(8, 0), (4, 2)], {"gpu": 1, "cpu": 8}, "8 CPUs and 1 GPUs", "8 CPUs and 0 GPUs, 4 CPUs and 2 GPUs"),
        ([], {}, "", "no node at all"),
        ([(0, 4)], {}, "1 GPUs", "0 CPUs and 4 GPUs"),
    ],
)
def test_what_no_node_can_hold_is_one_sentence(
    nodes: list[tuple[float, float]], config: dict[str, Any], need: str, have: str
) -> None:
    with pytest.raises(ConfigError) as told:
        settled(nodes, **config)
    sentence = str(told.value)
    assert sentence.startswith("resources: a worker needs ") and "\n" not in sentence
    assert need in sentence and f"(it has {have})" in sentence


nodes = st.builds(Node, cpus=st.integers(0, 64).map(float), gpus=st.integers(0, 8).map(float))
shares = st.sampled_from(["auto", 0, 0.25, 0.5, 1, 2, 4])


@given(st.lists(nodes, max_size=5), shares, st.sampled_from(["auto", 0.5, 1, 3, 8]))
def test_what_is_planned_fits(cluster: list[Node], gpu: Any, cpu: Any) -> None:
    try:
        made = plan(ResourcesConfig(gpu=gpu, cpu=cpu), cluster)
    except ConfigError:
        return
    held = made.resources
    room = sum(
        min(math.floor(node.cpus / held.cpu), math.floor(node.gpus / held.gpu) if held.gpu else 10**9)
        for node in cluster
    )
    assert 1 <= made.slots <= room
    assert held.cpu > 0


def test_the_plan_is_told_in_a_line() -> None:
    told = [describe(plan(ResourcesConfig(), [Node(cpus=16, gpus=gpus)])) for gpus in (4, 0)]
    assert told == ["4 trials at a time, each with 1 GPU and 4 CPU", "1 trial at a time, each with 16 CPU"]
    assert isinstance(plan(ResourcesConfig(), [Node(cpus=1, gpus=0)]), Plan)
