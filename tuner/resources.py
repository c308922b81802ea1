"""What a trial's worker holds, and how many workers the cluster has room for. Plain arithmetic, no Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.config import ResourcesConfig
from tuner.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, by what Ray may hand out there."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one worker of a trial holds."""

    gpu: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a search spreads over the cluster."""

    resources: Resources
    slots: int  # workers that train at once
    one_machine: bool  # whether all of them are the CPUs of one machine: its workers can take turns


def plan(config: ResourcesConfig, nodes: Sequence[Node]) -> Plan:
    """Settle `auto`: one GPU a worker where there are GPUs, else the CPUs of a node.

    Raises:
        ConfigError: no node can hold a worker.
    """
    gpus = sum(node.gpus for node in nodes)
    gpu = (1.0 if gpus else 0.0) if config.gpu == "auto" else float(config.gpu)
    able = [node for node in nodes if node.gpus >= gpu and node.cpus >= 1]
    if config.cpu == "auto":
        # The CPUs of a node are shared by the trials on it; the tightest node decides.
        cpu = min((max(1, node.cpus // math.floor(node.gpus / gpu)) if gpu else node.cpus for node in able), default=1)
    else:
        cpu = float(config.cpu)
    resources = Resources(gpu=gpu, cpu=cpu)
    slots = slots_on(nodes, resources)
    if slots == 0:
        have = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "no node at all"
        raise ConfigError(
            f"resources: a worker needs {cpu:g} CPUs and {gpu:g} GPUs, but no node of the cluster can hold that "
            f"(it has {have}); lower resources.cpu or resources.gpu, or add nodes"
        )
    return Plan(resources=resources, slots=slots, one_machine=not gpu and len(able) == 1)


def slots_on(nodes: Sequence[Node], resources: Resources) -> int:
    """How many workers these nodes hold at once."""
    return sum(_workers_on(node, resources) for node in nodes if node.cpus >= 1)


def _workers_on(node: Node, resources: Resources) -> int:
    by_cpu = math.floor(node.cpus / resources.cpu)
    return min(by_cpu, math.floor(node.gpus / resources.gpu)) if resources.gpu else by_cpu


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
    held: Mapping[str, float] = {"GPU": plan.resources.gpu, "CPU": plan.resources.cpu}
    per_trial = " and ".join(f"{amount:g} {name}" for name, amount in held.items() if amount)
    return f"{plan.slots} trial{'s' if plan.slots > 1 else ''} at a time, each with {per_trial}"
