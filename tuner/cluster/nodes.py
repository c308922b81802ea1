"""The nodes of a cluster: those that are alive, and those that its autoscaler may still start."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from tuner.cluster.resources import Node, still_startable
from tuner.config import yaml_tree
from tuner.config.search import StartableConfig

# `ray up` writes it on the machine that becomes the head of a cluster.
BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")


def alive() -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def capacity(startable: StartableConfig | None, *, private: bool) -> list[Node]:
    """The nodes that are alive, and those that an autoscaler may still start.

    Args:
        startable: the nodes that the experiment names; None: those of the cluster file, if `ray up` made this cluster.
        private: whether this program started Ray for itself alone; no autoscaler starts nodes for it.
    """
    running, bootstrap = alive(), BOOTSTRAP_FILE.expanduser()
    if private:
        return running
    if startable is not None:
        kind = Node(cpus=startable.cpu, gpus=startable.gpu)
        return running + still_startable(running, [(kind, startable.nodes)], startable.nodes)
    return running + (startable_by(yaml_tree.read(bootstrap).plain(), running) if bootstrap.exists() else [])


def startable_by(bootstrap: Mapping[str, Any], running: Sequence[Node]) -> list[Node]:
    """The nodes that the autoscaler of `ray up` may start in addition to those that are alive.

    Args:
        bootstrap: the complete cluster file, as `ray up` writes it on the head.
        running: the nodes that are alive, the head among them.
    """
    max_workers = bootstrap.get("max_workers", 0)
    kinds = []
    for name, kind in bootstrap.get("available_node_types", {}).items():
        resources = kind.get("resources", {})
        if name != bootstrap.get("head_node_type") and "CPU" in resources:
            node = Node(cpus=float(resources["CPU"]), gpus=float(resources.get("GPU", 0)))
            kinds.append((node, kind.get("max_workers", max_workers)))
    return still_startable(running, kinds, max_workers - (len(running) - 1))
