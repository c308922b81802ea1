"""A Ray that outlives a search: its head and further nodes are processes of this machine."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.support.workplace import Workplace, wait_for

REMAINING = """
import json, ray
from ray.util.state import list_actors
from tuner.workers import connection
with connection.connect({address!r}):
    groups = [id for id, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]
    actors = [actor.class_name for actor in list_actors(filters=[("state", "!=", "DEAD")])]
print(json.dumps([groups, actors]))
"""
# Actors that Ray itself starts once for all users of a cluster.
RAYS_OWN = {"_AutoscalingCoordinatorActor"}


def with_token() -> dict[str, str]:
    """Return the variables with which a node presents the user's token: a head asks for one where there is one.

    The first private Ray of a user makes the token, so whether there is one may change between two tests.
    """
    return {"RAY_AUTH_MODE": "token"} if Path("~/.ray/auth_token").expanduser().exists() else {}


@dataclass
class LongLivedRay:
    """A Ray whose head and further nodes are processes that `ray start` started."""

    place: Workplace
    port: int
    starters: list[subprocess.Popen[str]] = field(default_factory=list)  # of all nodes, the head first
    scratch: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Return the address of the head, for --address."""
        return f"127.0.0.1:{self.port}"

    def start_head(self, cpus: int = 2, memory: int | None = None) -> None:
        """Start the head; `memory`: the bytes that it offers, by default what the machine has."""
        offered = [] if memory is None else [f"--memory={memory}"]
        self._start("--head", f"--port={self.port}", f"--num-cpus={cpus}", "--dashboard-port=0", *offered)

    def add_node(self, cpus: int = 1) -> psutil.Process:
        """Start a further node; returns the process of its raylet."""
        starter = self._start(f"--address={self.address}", f"--num-cpus={cpus}")
        (raylet,) = (child for child in psutil.Process(starter.pid).children() if "raylet" in child.name())
        return raylet

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        self.scratch.append(tempfile.mkdtemp(prefix="ray-"))
        output = self.place.folder / f"node-{len(self.scratch)}.txt"
        command = ["start", "--block", *arguments, f"--temp-dir={self.scratch[-1]}", "--object-store-memory=100000000"]
        with output.open("w") as file:
            starter = subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), *command],
                cwd=self.place.folder,
                env=self.place.environment | with_token(),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.starters.append(starter)
        wait_for(lambda: "Ray runtime started" in output.read_text(), describe=output.read_text)
        return starter

    def kill(self) -> None:
        """Kill (-9) every process of it at once, as if the machine were gone."""
        every = [process for starter in self.starters if starter.poll() is None for process in _family(starter.pid)]
        for process in every:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for starter in self.starters:
            starter.wait()
        self.starters.clear()

    def end(self) -> None:
        """Stop it with SIGTERM, kill what is left after ten seconds, and remove its folders."""
        every = [process for starter in self.starters if starter.poll() is None for process in _family(starter.pid)]
        for starter in reversed(self.starters):
            starter.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(every, timeout=10)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for starter in self.starters:
            starter.wait()
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)

    def remaining(self) -> tuple[list[str], list[str]]:
        """Return the ids of all placement groups and the classes of all actors that still live."""
        # The State API needs RAY_ADDRESS where several Rays run on a machine.
        place = Workplace(self.place.folder, variables={"RAY_ADDRESS": self.address, **with_token()})
        done = place.python("-c", REMAINING.format(address=self.address))
        assert done.returncode == 0, done.stderr
        groups, actors = json.loads(done.stdout.splitlines()[-1])
        return groups, [actor for actor in actors if actor not in RAYS_OWN]

    def assert_nothing_is_left(self) -> None:
        """Wait until no placement group and no actor of a search lives: the last ones may take a moment to end."""
        found: list[Any] = []

        def nothing() -> bool:
            found[:] = self.remaining()
            return found == [[], []]

        wait_for(nothing, describe=lambda: found)


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


@contextmanager
def long_lived_ray(place: Workplace, cpus: int = 2, memory: int | None = None) -> Iterator[LongLivedRay]:
    """Start a Ray with a head; it ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        ray = LongLivedRay(place, probe.getsockname()[1])
    try:
        ray.start_head(cpus, memory)
        yield ray
    finally:
        ray.end()
