"""Checks that all nodes of a cluster share the folder or URL of a search: each reads a file that the driver wrote.

The path does not show it: the same path may be a network file system, or the disk of each node. In the latter case a
trial that moves to another node would start again from the beginning, and the driver could not read its checkpoints.
"""

import secrets
import socket

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner.errors import SearchError, first_line
from tuner.storage.place import Place

# For a task on every node. The first task on a node starts a Python process there.
PATIENCE_SECONDS = 120.0


def check_shared(folder: Place) -> None:
    """Refuse a folder that a node of the cluster does not share with this one, or cannot write to.

    Args:
        folder: it exists here, on the driver.

    Raises:
        SearchError: names the first such node.
    """
    nodes = _alive()
    if len(nodes) < 2:
        return
    probe, text = folder / f".shared-{secrets.token_hex(4)}", secrets.token_hex(16)
    probe.write_text(text, encoding="utf-8")
    read = ray.remote(num_cpus=0, max_retries=0)(_read)
    try:
        answers = {
            node: read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe)
            for node in nodes
        }
        for node, answer in answers.items():
            try:
                seen, mistake = ray.get(answer, timeout=PATIENCE_SECONDS)
            except RayError as error:
                if node not in _alive():
                    continue  # it has died, and nothing can run there
                raise SearchError(
                    f"{folder}: cannot check whether {nodes[node]} shares it ({first_line(error)}); is this node "
                    "reachable? `ray status` lists all"
                ) from error
            if seen != text:
                raise SearchError(
                    f"{folder} is not the same folder on {nodes[node]} as on {socket.gethostname()} "
                    f"({mistake or 'other files'}), so a search on {len(nodes)} nodes cannot use it; give a storage "
                    "that all nodes share, a network folder or a URL such as s3://bucket/searches (--storage, or "
                    "`storage:` in cluster.yaml)"
                )
    finally:
        probe.unlink(missing_ok=True)


def _alive() -> dict[str, str]:
    """The hosts of the nodes that are alive, by the id of the node."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def _read(probe: Place) -> tuple[str, str]:
    """The content of the probe on this node, and why the folder cannot be used here."""
    try:
        beside = probe.with_name(f"{probe.name}-{secrets.token_hex(4)}")
        text = probe.read_text(encoding="utf-8")
        beside.touch()
        beside.unlink(missing_ok=True)
    except OSError as error:
        return "", f"{error.strerror}"
    return text, ""
