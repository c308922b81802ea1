"""A cluster as a user launches it: the project's own cluster.yaml, its top lines edited, on hosts out of namespaces."""

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.support.hosts import ENVIRONMENT, HOME, KEY, SHARED, Host, Hosts
from tests.support.workplace import PROJECT, wait_for

SETTINGS = ". ~/.video-tuner/environment; "  # what a login on a host has, for a command on its console


class Launched:
    """A client with the project in its home, a head and workers; `up` makes a Ray cluster of them."""

    def __init__(self, workers: int = 2, cpus: int = 1) -> None:
        names = [f"worker{number}" for number in range(1, workers + 1)]
        self.hosts = Hosts(["head", *names])
        self.printed = ""  # by the search that the tests look at
        self.client, self.head = self.hosts.client, self.hosts["head"]
        self.workers: list[Host] = [self.hosts[name] for name in names]
        self.nodes = [self.head, *self.workers]
        self.project = self.inside(self.client, HOME / "project")
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "storage", "sample_data", "exports", "mlflow.db")
        shutil.copytree(PROJECT, self.project, ignore=unwanted)
        self._edit(cpus)

    def close(self) -> None:
        """End all hosts."""
        self.hosts.close()

    @staticmethod
    def inside(host: Host, path: Path) -> Path:
        """A path of a host, as the tests open it."""
        return Path(f"/proc/{host.first_process}/root{path}")

    def _edit(self, cpus: int) -> None:
        """What a user edits: the lines at the top; and what a machine that is shared by all hosts needs."""
        file = self.project / "cluster.yaml"
        text = file.read_text()
        for line, replacement in {
            r"head_ip: \S+": f"head_ip: {self.head.address}",
            r"worker_ips: \[[^]]*\]": f"worker_ips: [{', '.join(host.address for host in self.workers)}]",
            r"ssh_user: \w+": "ssh_user: root",
            r"ssh_private_key: \S+": f"ssh_private_key: {KEY}",
            r"storage: \S+": f"storage: {SHARED}",
            r"python: \S+": f"python: {ENVIRONMENT / 'bin' / 'python'}",
            r"\bray start (?=-)": f"ray start --num-cpus={cpus} --object-store-memory=100000000 ",
        }.items():
            text, found = re.subn(line, replacement, text)
            assert found, line
        file.write_text(text)

    def type(self, line: str, timeout: float = 600, check: bool = True) -> str:
        """Run a line of shell on the client, in the project; returns what it printed."""
        return self.client.run(f"cd ~/project; {line}", timeout=timeout, check=check)

    def up(self) -> str:
        """`ray up`, and wait until all workers have joined."""
        printed = self.type("ray up cluster.yaml --yes")
        self.wait_for_nodes(len(self.nodes))
        return printed

    def wait_for_nodes(self, number: int, seconds: float = 300) -> None:
        """Wait until Ray has this many nodes (of one kind, so their CPUs tell)."""
        wait_for(lambda: f"/{number}.0 CPU" in self.console("ray status", check=False), seconds)

    def submit(self, *arguments: str, check: bool = True) -> str:
        """`ray submit cluster.yaml tune.py -- ARGUMENTS`."""
        return self.type(" ".join(["ray submit cluster.yaml tune.py --", *arguments]), check=check)

    def console(self, line: str, check: bool = True, host: Host | None = None) -> str:
        """Run a line on the head (or another host) with the settings of the cluster."""
        return (host or self.head).run(SETTINGS + line, check=check)

    def mlflow(self, query: str) -> list[tuple[str, ...]]:
        """Ask a copy of the database of the head's MLflow server: SQLite takes a host's path for one of ours."""
        database = self.inside(self.head, HOME / ".video-tuner" / "mlflow" / "mlflow.db")
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(sqlite3.connect(shutil.copy(database, folder))) as connection,
        ):
            return connection.execute(query).fetchall()

    def wait(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Wait until something holds."""
        wait_for(condition, seconds)
