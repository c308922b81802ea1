"""Real servers for tests: `mlflow server`, PostgreSQL as its store, and a network that loses answers in between."""

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

from tests.support.missing import needed, not_installed
from tests.support.workplace import wait_for

PASSWORD = "hunter2-s3cret"


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """`mlflow server` on the loopback address; it serves the artifacts as well, so a client needs only its URI."""

    folder: Path
    store: str = ""  # URI of its database; if empty, SQLite in its folder
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.txt").read_text()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        # The database's URI may hold a password: a list of processes shows arguments, but not the environment.
        store = self.store or f"sqlite:///{self.folder / 'server.db'}"
        environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else it starts ten processes for language models
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
        """Kill (-9) the server and its workers; returns when its port refuses connections: the last one has ended."""
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
        except OSError:  # a process that is ending reset the connection
            return False
        return False


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a new PostgreSQL on the loopback address; yields its URI with the password."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        not_installed("PostgreSQL is not installed (apt-get install postgresql)")
    needed("psycopg", "pip install -e '.[postgresql]'")
    folder, port = Path(tempfile.mkdtemp(prefix="pg-")), free_port()
    (folder / "password").write_text(PASSWORD)
    user = None
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
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
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


class Network(ThreadingHTTPServer):
    """A proxy that forwards requests to a server and drops the answers to some: the server has acted on them."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = server
        self.lose_next: set[str] = set()  # the next answer to a path with one of these ends is dropped
        self.lost: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Network

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = HTTPConnection("127.0.0.1", self.server.target.port, timeout=120)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:
            self.close_connection = True
            return  # as if no server listened
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

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def log_message(self, format: str, *arguments: object) -> None:
        pass
