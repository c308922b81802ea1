"""A cluster as a user launches it: by the project's cluster.yaml, its top lines edited, on hosts made of namespaces."""

import re
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from tests.support.hosts import ENVIRONMENT, HOME, KEY, SHARED, Host, Hosts
from tests.support.workplace import PROJECT, wait_for

SETTINGS = ". ~/.video-tuner/environment; "  # a login on a host reads it, a command on its console does not


class Launched:
    """A client with the project in its home, a head, and workers; `up` starts a Ray cluster on them."""

    def __init__(self) -> None:
        names = ["worker1", "worker2"]
        self.hosts = Hosts(["head", *names])
        self.printed = ""  # by the search that the tests examine
        self.client, self.head = self.hosts.client, self.hosts["head"]
        self.workers: list[Host] = [self.hosts[name] for name in names]
        self.nodes = [self.head, *self.workers]
        self.project = self.inside(self.client, HOME / "project")
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "storage", "sample_data", "exports", "mlflow.db")
        shutil.copytree(PROJECT, self.project, ignore=unwanted)
        self._edit()

    def close(self) -> None:
        """End all hosts and everything on them."""
        self.hosts.close()

    @staticmethod
    def inside(host: Host, path: Path) -> Path:
        """Return the path under which the tests can open a host's file."""
        return Path(f"/proc/{host.first_process}/root{path}")

    def _edit(self) -> None:
        """Edit cluster.yaml as a user would, and limit what each host takes of the machine that all share."""
        file = self.project / "cluster.yaml"
        text = file.read_text()
        for line, replacement in {
            r"head_ip: \S+": f"head_ip: {self.head.address}",
            r"worker_ips: \[[^]]*\]": f"worker_ips: [{', '.join(host.address for host in self.workers)}]",
            r"ssh_user: \w+": "ssh_user: root",
            r"ssh_private_key: \S+": f"ssh_private_key: {KEY}",
            r"storage: \S+": f"storage: {SHARED}",
            r"python: \S+": f"python: {ENVIRONMENT / 'bin' / 'python'}",
            r"\bray start (?=-)": "ray start --num-cpus=1 --object-store-memory=100000000 ",
        }.items():
            text, found = re.subn(line, replacement, text)
            assert found, line
        file.write_text(text)

    def type(self, line: str, timeout: float = 600, check: bool = True) -> str:
        """Run a line of shell on the client, in the project's folder; returns its output."""
        return self.client.run(f"cd ~/project; {line}", timeout=timeout, check=check)

    def up(self) -> str:
        """Run `ray up` and wait until all workers have joined."""
        printed = self.type("ray up cluster.yaml --yes")
        self.wait_for_nodes(len(self.nodes))
        return printed

    def wait_for_nodes(self, number: int, seconds: float = 300) -> None:
        """Wait until Ray has this many nodes: each has one CPU, so the CPUs count them."""
        wait_for(lambda: f"/{number}.0 CPU" in self.console("ray status", check=False), seconds)

    def submit(self, *arguments: str, check: bool = True) -> str:
        """Run `ray submit cluster.yaml tune.py -- ARGUMENTS`; returns its output."""
        return self.type(" ".join(["ray submit cluster.yaml tune.py --", *arguments]), check=check)

    def console(self, line: str, check: bool = True, host: Host | None = None) -> str:
        """Run a line of shell on the head, or on `host`, with the settings of the cluster; returns its output."""
        return (host or self.head).run(SETTINGS + line, check=check)

    def mlflow(self, query: str) -> list[tuple[str, ...]]:
        """Query a copy of the MLflow server's database: SQLite cannot open it under the path that the tests see."""
        database = self.inside(self.head, HOME / ".video-tuner" / "mlflow" / "mlflow.db")
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(sqlite3.connect(shutil.copy(database, folder))) as connection,
        ):
            return connection.execute(query).fetchall()
