"""The resources that a trial's workers hold, and how many trials fit on the cluster. Arithmetic only, no Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.config.search import ResourcesConfig
from tuner.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster: the resources that Ray may assign there."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one worker of a trial holds, and how many workers a trial has."""

    gpu: float
    cpu: float
    min_workers: int = 1
    max_workers: int = 1  # above min_workers: as many as fit on the cluster, while nodes come and go


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a search is distributed over the cluster."""

    resources: Resources
    slots: int  # trials that train at the same time


def plan(config: ResourcesConfig, nodes: Sequence[Node]) -> Plan:
    """Resolve `auto`: one GPU per worker where there are GPUs, else the CPUs of a node divided by the workers on it.

    Raises:
        ConfigError: no node can hold a worker, or all nodes together cannot hold the workers of a trial.
    """
    gpus = sum(node.gpus for node in nodes)
    gpu = (1.0 if gpus else 0.0) if config.gpu == "auto" else float(config.gpu)
    usable = [node for node in nodes if node.gpus >= gpu and node.cpus >= 1]
    if config.cpu == "auto":
        # The workers on a node share its CPUs; the node with the fewest CPUs per worker decides.
        on_each = math.ceil(config.max_workers / max(1, len(usable)))
        cpu = min((max(1, node.cpus // (_by_gpu(node, gpu) if gpu else on_each)) for node in usable), default=1)
    else:
        cpu = float(config.cpu)
    resources = Resources(gpu=gpu, cpu=cpu, min_workers=config.min_workers, max_workers=config.max_workers)
    slots = slots_on(nodes, resources)
    if slots == 0:
        fitting = _workers_on(nodes, resources)
        need = f"{cpu:g} CPUs and {gpu:g} GPUs"
        if fitting == 0:
            problem = f"a worker needs {need}, but no node of the cluster can hold that"
        else:
            problem = f"a trial needs {config.min_workers} workers of {need}, but the cluster can hold {fitting}"
        have = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "no node"
        lower = "resources.cpu or resources.gpu" if fitting == 0 else "resources.workers, cpu or gpu"
        raise ConfigError(f"resources: {problem} (it has {have}); lower {lower}, or add nodes")
    return Plan(resources=resources, slots=slots)


def slots_on(nodes: Sequence[Node], resources: Resources) -> int:
    """How many trials these nodes hold at a time; elastic ones: as many as get all of their workers, or one trial."""
    fitting = _workers_on(nodes, resources)
    return max(1, fitting // resources.max_workers) if fitting >= resources.min_workers else 0


def threads_of(cpus: float) -> int:
    """The threads of torch in a worker that holds so many CPUs."""
    return max(1, int(cpus))


def _workers_on(nodes: Sequence[Node], resources: Resources) -> int:
    cpu, gpu, nodes = resources.cpu, resources.gpu, [node for node in nodes if node.cpus >= 1]
    by_cpu = [math.floor(node.cpus / cpu) for node in nodes]
    by_gpu = [_by_gpu(node, gpu) for node in nodes] if gpu else by_cpu
    return sum(map(min, by_cpu, by_gpu))


def _by_gpu(node: Node, gpu: float) -> int:
    """Workers that fit by GPUs. A share is one of a single GPU: two of 0.4 fit on each, so four and not five on two."""
    return math.floor(node.gpus) * math.floor(1 / gpu) if gpu < 1 else math.floor(node.gpus / gpu)


def still_startable(alive: Sequence[Node], kinds: Sequence[tuple[Node, int]], limit: int) -> list[Node]:
    """The nodes that an autoscaler may start in addition to those that are alive.

    Args:
        alive: the nodes that are alive; those that equal a kind count as nodes of it.
        kinds: of nodes, each with the largest number of them.
        limit: the number of nodes of all kinds together that may still be started.
    """
    found = [node for node, number in kinds for _ in range(number - sum(one == node for one in alive))]
    return found[: max(0, limit)]


def describe(plan: Plan) -> str:
    """The plan in one line, for the console."""
    resources = plan.resources
    held: Mapping[str, float] = {"GPU": resources.gpu, "CPU": resources.cpu}
    each = " and ".join(f"{amount:g} {name}" for name, amount in held.items() if amount)
    if resources.max_workers > 1:
        low, high = resources.min_workers, resources.max_workers
        each = f"{high if low == high else f'{low} to {high}'} workers of {each}"
    return f"{plan.slots} trial{'s' if plan.slots > 1 else ''} at a time, each with {each}"
