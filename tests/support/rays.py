"""Rays that outlive a search: a head and its nodes as processes of this machine, ended by their own ids."""

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

LEFT = """
import json, ray
from ray.util.state import list_actors
from tuner import cluster
cluster._join({address!r})
groups = [id for id, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]
print(json.dumps([groups, [actor.class_name for actor in list_actors(filters=[("state", "!=", "DEAD")])]]))
"""
# Ray keeps its own coordinator of autoscaling, one for all who use the cluster.
RAYS_OWN = {"_AutoscalingCoordinatorActor"}


# A head asks for a token wherever this user has one; a node brings it along only when it is told to.
WITH_TOKEN = {"RAY_AUTH_MODE": "token"} if Path("~/.ray/auth_token").expanduser().exists() else {}


@dataclass
class LongLivedRay:
    """A Ray whose head, and whose further nodes, are `ray start` processes."""

    place: Workplace
    port: int
    starters: list[subprocess.Popen[str]] = field(default_factory=list)  # the head first
    scratch: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For --address."""
        return f"127.0.0.1:{self.port}"

    def start_head(self, cpus: int = 2) -> None:
        """Start the head."""
        self._start("--head", f"--port={self.port}", f"--num-cpus={cpus}", "--dashboard-port=0")

    def add_node(self, cpus: int = 1) -> psutil.Process:
        """Start a further node; returns its raylet."""
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
                env=self.place.environment | WITH_TOKEN,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.starters.append(starter)
        wait_for(lambda: "Ray runtime started" in output.read_text(), told=output.read_text)
        return starter

    def kill(self) -> None:
        """Kill -9 of everything at once: the machine is gone."""
        every = [process for starter in self.starters if starter.poll() is None for process in _family(starter.pid)]
        for process in every:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for starter in self.starters:
            starter.wait()
        self.starters.clear()

    def end(self) -> None:
        """End it in order, then by force; remove its folders."""
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

    def left(self) -> tuple[list[str], list[str]]:
        """Placement groups and actors that live."""
        # The State API asks for RAY_ADDRESS where there are several Rays on a machine.
        place = Workplace(self.place.folder, variables={"RAY_ADDRESS": self.address})
        done = place.python("-c", LEFT.format(address=self.address))
        assert done.returncode == 0, done.stderr
        groups, actors = json.loads(done.stdout.splitlines()[-1])
        return groups, [actor for actor in actors if actor not in RAYS_OWN]

    def assert_nothing_is_left(self) -> None:
        """No placement group and no actor of a search; what was stopped last may take a moment to go."""
        told: list[Any] = []

        def nothing() -> bool:
            told[:] = self.left()
            return told == [[], []]

        wait_for(nothing, told=lambda: told)


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


@contextmanager
def long_lived_ray(place: Workplace, cpus: int = 2) -> Iterator[LongLivedRay]:
    """A Ray with a head, ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        ray = LongLivedRay(place, probe.getsockname()[1])
    try:
        ray.start_head(cpus)
        yield ray
    finally:
        ray.end()
