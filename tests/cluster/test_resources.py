"""The resources that a trial holds on a cluster, in a table."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.train.backend import Backend

from tuner.cluster.resources import Node, Plan, Resources, describe, plan
from tuner.config.search import ElasticConfig, ResourcesConfig
from tuner.errors import ConfigError
from tuner.workers.train_run import process_group, scaling


def settled(nodes: list[tuple[float, float]], **config: Any) -> tuple[float, float, int]:
    """(GPUs, CPUs) of a worker and how many fit, on nodes of (CPUs, GPUs)."""
    made = plan(ResourcesConfig(**config), [Node(cpus=cpus, gpus=gpus) for cpus, gpus in nodes])
    return made.resources.gpu, made.resources.cpu, made.slots


@pytest.mark.parametrize(
    "nodes, config, expected",
    [
        # auto, without a GPU: one trial per node
        ([(2, 0)], {}, (0, 2, 1)),
        ([(8, 0), (8, 0)], {}, (0, 8, 2)),
        ([(8, 0), (4, 0)], {}, (0, 4, 3)),  # the smallest node holds a trial too
        # auto, with GPUs: one each, and its share of the CPUs
        ([(32, 8)], {}, (1, 4, 8)),
        ([(16, 1), (16, 1)], {}, (1, 16, 2)),
        ([(4, 8)], {}, (1, 1, 4)),  # fewer CPUs than GPUs
        ([(2, 0), (16, 4)], {}, (1, 4, 4)),  # a head without a GPU trains nothing
        ([(16, 4), (8, 4)], {}, (1, 2, 8)),
        # fractions
        ([(16, 2)], {"gpu": 0.5}, (0.5, 4, 4)),
        ([(16, 1)], {"gpu": 0.25, "cpu": 2}, (0.25, 2, 4)),
        ([(16, 1)], {"gpu": 0.1, "cpu": 1}, (0.1, 1, 10)),
        ([(16, 3)], {"gpu": 0.3}, (0.3, 1, 9)),  # three on each GPU
        ([(16, 2)], {"gpu": 0.4}, (0.4, 4, 4)),  # two on each: a share is one of a single GPU
        ([(16, 2)], {"gpu": 0.6}, (0.6, 8, 2)),
        ([(2, 0)], {"cpu": 0.5}, (0, 0.5, 4)),
        # several GPUs for a worker
        ([(16, 4)], {"gpu": 2}, (2, 8, 2)),
        ([(16, 5)], {"gpu": 2}, (2, 8, 2)),
        # as given
        ([(8, 2)], {"gpu": 0}, (0, 8, 1)),
        ([(8, 2)], {"gpu": 0, "cpu": 1}, (0, 1, 8)),
        ([(8, 2)], {"cpu": 1}, (1, 1, 2)),  # the GPUs are exhausted first
        ([(8, 0), (3, 0)], {"cpu": 2}, (0, 2, 5)),
        ([(4, 0), (1, 0)], {"cpu": 2}, (0, 2, 2)),  # one node is too small
        # several workers per trial: the trials that fit, on any nodes
        ([(2, 0)], {"workers": 2}, (0, 1, 1)),
        ([(8, 0), (8, 0)], {"workers": 2}, (0, 8, 1)),
        ([(8, 0), (8, 0), (8, 0)], {"workers": 4}, (0, 4, 1)),
        ([(8, 0)], {"workers": 2, "cpu": 1}, (0, 1, 4)),
        ([(32, 8)], {"workers": 4}, (1, 4, 2)),
        ([(16, 3), (16, 3)], {"workers": 2}, (1, 5, 3)),
        ([(16, 1)], {"workers": 2, "gpu": 0.5}, (0.5, 8, 1)),
        # elastic: as many trials as fit with all of their workers, or one with fewer
        ([(32, 8)], {"workers": ElasticConfig(min=1, max=4)}, (1, 4, 2)),
        ([(16, 3)], {"workers": ElasticConfig(min=2, max=4)}, (1, 5, 1)),
        ([(2, 0)], {"workers": ElasticConfig(min=1, max=4)}, (0, 1, 1)),
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
        ([], {}, "", "no node"),
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


def test_workers_that_do_not_fit_together_are_one_sentence() -> None:
    with pytest.raises(ConfigError) as told:
        settled([(8, 1), (8, 2)], workers=ElasticConfig(min=4, max=8))
    assert str(told.value) == (
        "resources: a trial needs 4 workers of 4 CPUs and 1 GPUs, but the cluster can hold 3 (it has 8 CPUs and 1 "
        "GPUs, 8 CPUs and 2 GPUs); lower resources.workers, cpu or gpu, or add nodes"
    )


nodes = st.builds(Node, cpus=st.integers(0, 64).map(float), gpus=st.integers(0, 8).map(float))
shares = st.sampled_from(["auto", 0, 0.25, 0.5, 1, 2, 4])


@given(
    st.lists(nodes, max_size=5), shares, st.sampled_from(["auto", 0.5, 1, 3, 8]), st.integers(1, 4), st.integers(1, 4)
)
def test_what_is_planned_fits(cluster: list[Node], gpu: Any, cpu: Any, one: int, other: int) -> None:
    workers = ElasticConfig(min=min(one, other), max=max(one, other)) if one != other else one
    try:
        made = plan(ResourcesConfig(gpu=gpu, cpu=cpu, workers=workers), cluster)
    except ConfigError:
        return
    held = made.resources
    room = sum(
        min(math.floor(node.cpus / held.cpu), math.floor(node.gpus / held.gpu) if held.gpu else 10**9)
        for node in cluster
    )
    assert held.min_workers <= room and made.slots >= 1
    assert made.slots == 1 or made.slots * held.max_workers <= room
    assert held.cpu > 0
    assert scaling(held).total_resources["CPU"] == held.cpu * held.max_workers  # Train accepts it


def test_what_train_requests() -> None:
    shared = scaling(Resources(gpu=0.5, cpu=2))
    assert (shared.num_workers, shared.use_gpu) == (1, True)
    assert shared.resources_per_worker == {"CPU": 2, "GPU": 0.5}
    assert scaling(Resources(gpu=0, cpu=2)).resources_per_worker == {"CPU": 2}
    several = scaling(Resources(gpu=1, cpu=1, min_workers=3, max_workers=3))
    assert (several.num_workers, several.elasticity_enabled) == (3, False)
    elastic = scaling(Resources(gpu=0, cpu=1, min_workers=1, max_workers=4))
    assert (elastic.num_workers, elastic.elasticity_enabled, elastic.use_gpu) == ((1, 4), True, False)


@pytest.mark.parametrize("gpu, workers, backend", [(0, 2, "gloo"), (1, 2, "nccl"), (2, 2, "nccl"), (0.5, 2, "gloo")])
def test_the_backend_of_several_workers(gpu: float, workers: int, backend: str) -> None:
    resources = Resources(gpu=gpu, cpu=1, min_workers=1, max_workers=workers)
    assert process_group(resources).backend == backend


def test_a_single_worker_has_no_process_group() -> None:
    assert process_group(Resources(gpu=1, cpu=1)).backend_cls is Backend


def test_the_plan_is_described_in_a_line() -> None:
    told = [describe(plan(ResourcesConfig(), [Node(cpus=16, gpus=gpus)])) for gpus in (4, 0)]
    assert told == ["4 trials at a time, each with 1 GPU and 4 CPU", "1 trial at a time, each with 16 CPU"]
    told = [
        describe(plan(ResourcesConfig(workers=workers), [Node(cpus=16, gpus=4)]))
        for workers in (2, ElasticConfig(min=1, max=4))
    ]
    assert told == [
        "2 trials at a time, each with 2 workers of 1 GPU and 4 CPU",
        "1 trial at a time, each with 1 to 4 workers of 1 GPU and 4 CPU",
    ]
    assert isinstance(plan(ResourcesConfig(), [Node(cpus=1, gpus=0)]), Plan)
