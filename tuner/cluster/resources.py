"""What a trial's workers hold, and how many trials the cluster has room for. Plain arithmetic, no Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.config.search import ResourcesConfig
from tuner.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, by what Ray may hand out there."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one worker of a trial holds, and how many of them a trial has."""

    gpu: float
    cpu: float
    min_workers: int = 1
    max_workers: int = 1  # more than the fewest: as many as there is room for, while nodes come and go


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a search spreads over the cluster."""

    resources: Resources
    slots: int  # trials that train at once
    one_machine: bool  # whether all of them are lone workers on the CPUs of one machine: these can take turns


def plan(config: ResourcesConfig, nodes: Sequence[Node]) -> Plan:
    """Settle `auto`: one GPU a worker where there are GPUs, else the CPUs of a node over the workers on it.

    Raises:
        ConfigError: no node can hold a worker, or all of them together not the workers of a trial.
    """
    gpus = sum(node.gpus for node in nodes)
    gpu = (1.0 if gpus else 0.0) if config.gpu == "auto" else float(config.gpu)
    able = [node for node in nodes if node.gpus >= gpu and node.cpus >= 1]
    if config.cpu == "auto":
        # The CPUs of a node are shared by the workers on it; the tightest node decides.
        on_each = math.ceil(config.max_workers / max(1, len(able)))
        cpu = min((max(1, node.cpus // (_by_gpu(node, gpu) if gpu else on_each)) for node in able), default=1)
    else:
        cpu = float(config.cpu)
    resources = Resources(gpu=gpu, cpu=cpu, min_workers=config.min_workers, max_workers=config.max_workers)
    slots = slots_on(nodes, resources)
    if slots == 0:
        room = _workers_on(nodes, resources)
        need = f"{cpu:g} CPUs and {gpu:g} GPUs"
        if room == 0:
            wish = f"a worker needs {need}, but no node of the cluster can hold that"
        else:
            wish = f"a trial needs {config.min_workers} workers of {need}, but the cluster has room for {room}"
        have = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "no node at all"
        lower = "resources.cpu or resources.gpu" if room == 0 else "resources.workers, cpu or gpu"
        raise ConfigError(f"resources: {wish} (it has {have}); lower {lower}, or add nodes")
    lone_on_cpus = not gpu and config.max_workers == 1
    return Plan(resources=resources, slots=slots, one_machine=lone_on_cpus and len(able) == 1)


def slots_on(nodes: Sequence[Node], resources: Resources) -> int:
    """How many trials these nodes hold at once; of elastic ones, as many as have all of their workers, or one."""
    room = _workers_on(nodes, resources)
    return max(1, room // resources.max_workers) if room >= resources.min_workers else 0


def _workers_on(nodes: Sequence[Node], resources: Resources) -> int:
    cpu, gpu, nodes = resources.cpu, resources.gpu, [node for node in nodes if node.cpus >= 1]
    by_cpu = [math.floor(node.cpus / cpu) for node in nodes]
    by_gpu = [_by_gpu(node, gpu) for node in nodes] if gpu else by_cpu
    return sum(map(min, by_cpu, by_gpu))


def _by_gpu(node: Node, gpu: float) -> int:
    """A share of a GPU is one of a single GPU: two of 0.4 fit on each, so four and not five on two."""
    return math.floor(node.gpus) * math.floor(1 / gpu) if gpu < 1 else math.floor(node.gpus / gpu)


def still_startable(alive: Sequence[Node], kinds: Sequence[tuple[Node, int]], most: int) -> list[Node]:
    """What an autoscaler may start beside the nodes that are there.

    Args:
        alive: the nodes that are there; those like a kind are taken for nodes of it.
        kinds: of nodes, with the most that there may be of each.
        most: nodes of all kinds together that may still be started.
    """
    found = [node for node, number in kinds for _ in range(number - sum(one == node for one in alive))]
    return found[: max(0, most)]


def describe(plan: Plan) -> str:
    """One line for a person."""
    resources = plan.resources
    held: Mapping[str, float] = {"GPU": resources.gpu, "CPU": resources.cpu}
    each = " and ".join(f"{amount:g} {name}" for name, amount in held.items() if amount)
    if resources.max_workers > 1:
        fewest, most = resources.min_workers, resources.max_workers
        each = f"{most if fewest == most else f'{fewest} to {most}'} workers of {each}"
    return f"{plan.slots} trial{'s' if plan.slots > 1 else ''} at a time, each with {each}"
