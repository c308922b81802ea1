"""Whether all nodes of a cluster see the folder or the URL of a search: a file written here is read back on each.

A path says nothing about that: the same name may be a network's file system or every node's own disk. On the latter
a trial would start again from nothing wherever it moves, and its checkpoints would be out of the driver's reach.
"""

import secrets
import socket

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner.errors import SearchError
from tuner.storage.place import Place

# For a task on every node: the first one on a node starts a Python process there.
PATIENCE_SECONDS = 120.0


def check_shared(folder: Place) -> None:
    """Refuse a folder that some node of the cluster does not see, or cannot write to.

    Args:
        folder: it exists here, on the driver.

    Raises:
        SearchError: naming the first such node.
    """
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    probe, text = folder / f".shared-{secrets.token_hex(4)}", secrets.token_hex(16)
    probe.write_text(text)
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    try:
        asked = {
            host: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe)
            for node, host in nodes.items()
        }
        for host, answer in asked.items():
            seen, mistake = ray.get(answer, timeout=PATIENCE_SECONDS)
            if seen != text:
                raise SearchError(
                    f"{folder} is not the same folder on {host} as on {socket.gethostname()} "
                    f"({mistake or 'other files'}), so a search on {len(nodes)} nodes cannot live there; name a "
                    "storage that all of them see, a shared folder or a URL such as s3://bucket/searches "
                    "(--storage, or `storage:` in cluster.yaml)"
                )
    except RayError as error:
        raise SearchError(f"{folder}: cannot tell whether all nodes see it: {str(error).splitlines()[0]}") from error
    finally:
        probe.unlink(missing_ok=True)


def _look(probe: Place) -> tuple[str, str]:
    """What the probe holds on this node, and why it cannot be used."""
    try:
        beside = probe.with_name(f"{probe.name}-{secrets.token_hex(4)}")
        text = probe.read_text()
        beside.touch()
        beside.unlink()
    except OSError as error:
        return "", f"{error.strerror}"
    return text, ""
