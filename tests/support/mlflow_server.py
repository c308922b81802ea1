"""Real servers for tests: `mlflow server`, the PostgreSQL behind it, and a network between it and its client."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.workplace import wait_for

PASSWORD = "hunter2-s3cret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """`mlflow server` on the loopback address, with artifacts through it: one URI is all that a client needs."""

    folder: Path
    store: str = ""  # URI of its database; by default SQLite in its folder
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.txt").read_text()

    def start(self) -> None:
        """Start it and wait until it answers."""
        # The database's URI may hold a password: in the environment, where a list of processes does not show it.
        store = self.store or f"sqlite:///{self.folder / 'server.db'}"
        environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes for language models
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host=127.0.0.1", f"--port={self.port}"]
        command += ["--workers=1", "--serve-artifacts", f"--artifacts-destination={self.folder / 'artifacts'}"]
        with (self.folder / "server.txt").open("ab") as file:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=file, stderr=file, start_new_session=True
            )
        wait_for(lambda: self.answers() or self.process is None or self.process.poll() is not None, 240)
        assert self.answers(), self.log

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=10) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9, workers included; returns when its port refuses, which is when the last of them has ended."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            wait_for(self._refuses)

    def _refuses(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        except OSError:  # reset by one that is ending
            return False
        return False


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of its own on the loopback address; yields its URI, password included."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="pip install -e '.[postgresql]'")
    folder, port = Path(tempfile.mkdtemp(prefix="pg-")), free_port()
    (folder / "password").write_text(PASSWORD)
    user = None
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        user = "postgres"
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    options = {"cwd": folder, "user": user, "stdout": subprocess.DEVNULL}
    data = folder / "data"
    setup = [initdb, f"--pgdata={data}", "--username=tuner", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    subprocess.run(setup, check=True, **options)  # type: ignore[call-overload]
    command = [str(Path(initdb).with_name("postgres")), "-D", str(data), "-p", str(port), "-k", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "-h", "127.0.0.1"], stderr=log, **options)  # type: ignore[call-overload]
    try:
        wait_for(lambda: "ready to accept connections" in (folder / "log").read_text())
        yield f"postgresql://tuner:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # its fast shutdown
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


class Network(ThreadingHTTPServer):
    """Hands requests on to a server, and loses the answers that it is told to lose: the server has acted on those."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = server
        self.lose_next: set[str] = set()  # ends of paths whose next answer is lost
        self.lost: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Network

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = HTTPConnection("127.0.0.1", self.server.target.port, timeout=120)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:
            self.close_connection = True
            return  # as if nobody were there
        finally:
            upstream.close()
        lose = next((end for end in self.server.lose_next if self.path.split("?")[0].endswith(end)), None)
        if lose is not None:
            self.server.lose_next.discard(lose)
            self.server.lost[lose] += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on

    def log_message(self, format: str, *arguments: object) -> None:
        pass
