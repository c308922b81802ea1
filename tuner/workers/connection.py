"""Connects a search to the Ray that it runs on: a running one, or a private one that ends with the search."""

import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import ray
import torch

from data import machine
from tuner.cluster.nodes import BOOTSTRAP_FILE
from tuner.errors import SearchError, first_line
from tuner.storage.journal import Attempt
from tuner.storage.scratch import scratch_folder
from tuner.workers import placement, ray_internals

# Ray's objects of a search are configurations and reports, never data: the decoded shards are memory-mapped files.
OBJECT_STORE_BYTES = 128 * 2**20
JOIN_SECONDS = 15.0  # until a head that does not answer is given up
# What a client of gRPC, hence of Ray, sends first: the preface of HTTP/2 and empty settings (RFC 9113, 3.4). A server
# answers at once; a process that hangs takes the connection all the same, and says nothing.
HTTP2_BEGINS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# Ray's access token of this user.
TOKEN_FILE = Path("~/.ray/auth_token")
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # Ray documents this variable: a token file elsewhere
# The path of a Unix socket has at most 107 bytes. This is Ray's longest one, below the parent of `scratch_folder`.
SOCKET = "/tuner-0123456789ab/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
LONGEST_PARENT = 107 - len(SOCKET)
# Folders for temporary files with a short path, where that of the user's temporary folder is too long.
SHORT_FOLDERS = ("/tmp", "/var/tmp")

# Environment variables that Ray documents; tuner/workers/ray_internals.py has another. Tune passes those of Train on to
# slots, controllers and workers.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # until a lost worker is noticed; 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000",  # a slot that waits for its resources does not hang
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and TensorBoard files: MLflow has all of it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # tuner/search/stopper.py handles signals
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report of an error has no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the journal is the record of a search, not Tune's snapshot
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def start_together(slots: int) -> None:
    """Let Tune start as many slots at a time as there are; its default is one actor after the other."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)


def resolve_address(address: str | None) -> str:
    """`local` for a private Ray, or the address of a running one.

    Ray's own search for a running Ray is not used, because it may find the Ray of another user.

    Args:
        address: of the command line; None: $RAY_ADDRESS, else `auto` on the head of a cluster that `ray up` made, else
            `local`.
    """
    if address:
        return address
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    return "auto" if BOOTSTRAP_FILE.expanduser().exists() else "local"


@contextmanager
def connect(address: str, print_line: Callable[[str], None] = print) -> Iterator[Attempt]:
    """Connect to the Ray at `address`, or start a private one; when the block ends, nothing of this search remains.

    Args:
        address: as `resolve_address` returns it.
        print_line: prints a sentence about what fails beside the search.

    Yields:
        What has to be cleaned up after this driver if it is killed.

    Raises:
        SearchError: no Ray answers at the address.
    """
    private = address == "local"
    settings = SETTINGS | (ray_internals.PRIVATE_SETTINGS if private else {})
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    with ExitStack() as open_until_end:
        scratch = open_until_end.enter_context(scratch_folder(_short_parent())) if private else None
        if scratch is not None:
            open_until_end.enter_context(_token_outside_of_home(scratch))
        try:
            with _sigterm_restored():
                if scratch is not None:
                    _start_private(scratch)
                else:
                    _join(address, print_line)
            attempt = Attempt(
                cluster=ray.get_runtime_context().get_session_name(),
                job=ray.get_runtime_context().get_job_id(),
                scratch=str(scratch) if scratch else None,
            )
            with placement.freed(attempt.job, print_line):
                yield attempt
        finally:
            with _sigterm_restored():
                ray.shutdown()


def clean_up(earlier: Sequence[Attempt], now: Attempt) -> None:
    """Remove the placement groups that drivers which were killed have left on this cluster."""
    for attempt in earlier:
        if attempt.cluster == now.cluster:
            placement.remove(attempt.job)


@contextmanager
def _sigterm_restored() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block: Ray replaces it when it starts, and resets it when it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _join(address: str, print_line: Callable[[str], None]) -> None:
    """Connect to a running Ray; refuse a head that does not answer, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    print_line(f"connecting to the Ray {'of this machine' if address == 'auto' else f'at {address}'}")
    if host and port.isdecimal():  # not `auto`, which Ray resolves
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=JOIN_SECONDS) as head:
                head.sendall(HTTP2_BEGINS)
                head.recv(1)
        except OSError as error:
            raise SearchError(
                f"no Ray answers at {address} ({error.strerror or error}); check --address and $RAY_ADDRESS, or use "
                "--address local for a Ray of this search alone"
            ) from error
    try:
        ray.init(address=address, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SearchError(
            f"no Ray answers at {address}: {first_line(error)}; check that it runs, and that its token "
            "(`ray get-auth-token` there prints it) is in ~/.ray/auth_token here"
        ) from error
    if os.environ.get("OMP_NUM_THREADS") == "1":
        # `ray submit` and `ray job submit` set it for every program they run; this driver scores the winner itself.
        torch.set_num_threads(max(1, int(machine.cpus())))


def _short_parent() -> Path:
    """Where the folder of a private Ray can be: the paths of its sockets must not be too long.

    Raises:
        SearchError: the temporary folder's path is too long, and no other folder can be written.
    """
    usual, others = Path(tempfile.gettempdir()), " and ".join(SHORT_FOLDERS)
    for parent in (usual, *map(Path, SHORT_FOLDERS)):
        if len(os.fsencode(parent)) <= LONGEST_PARENT and os.access(parent, os.W_OK | os.X_OK):
            return parent
    raise SearchError(
        f"{usual}: the path of the temporary folder is too long for the sockets of Ray, and {others} cannot be "
        f"written; set TMPDIR to a folder whose path has at most {LONGEST_PARENT} letters"
    )


@contextmanager
def _token_outside_of_home(scratch: Path) -> Iterator[None]:
    """Keep Ray's access token in the scratch folder during the block, where the home of the user cannot hold it.

    Ray writes its token there when it starts. Without a home, or with one that is read-only, it would end with a
    traceback.
    """
    if any(name in os.environ for name in ("RAY_AUTH_TOKEN", TOKEN_PATH)) or _home_holds_token():
        yield
        return
    file = scratch / "auth_token"
    file.touch(mode=0o600)
    file.write_text(_process_token(), encoding="utf-8")
    os.environ[TOKEN_PATH] = str(file)
    try:
        yield
    finally:
        del os.environ[TOKEN_PATH]


def _home_holds_token() -> bool:
    """Whether the user's home has a token of Ray, or can get one."""
    try:
        file = TOKEN_FILE.expanduser()
        file.parent.mkdir(exist_ok=True)
        return file.exists() or os.access(file.parent, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # the latter: there is no home
        return False


@cache
def _process_token() -> str:
    """The token of all private Rays of this process, which reads it once."""
    return secrets.token_hex(32)


def _start_private(scratch: Path) -> None:
    """Start a Ray for this search alone. It asks for a token, because most of its servers listen on every address."""
    ray.init(
        address="local",
        include_dashboard=False,  # it takes seconds to start, and MLflow shows the search
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=True,
        **ray_internals.private_ray(str(scratch)),
    )
    with suppress(OSError, RuntimeError):  # no token, as authentication is switched off; or no home
        TOKEN_FILE.expanduser().chmod(0o600)  # Ray makes it readable for every user of the machine
