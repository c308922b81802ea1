"""Which Ray a search runs on, and leaving it as it was found."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from tuner.cluster import placement
from tuner.cluster.resources import Node, still_startable
from tuner.config import yaml_tree
from tuner.config.search import StartableConfig
from tuner.errors import SearchError
from tuner.storage.journal import Attempt

# Objects of a search are configurations and reports, never data: the decoded shards are memory-mapped files.
OBJECT_STORE_BYTES = 128 * 2**20
# Short: the paths of Ray's sockets lie below it, and may have 107 characters.
SCRATCH_PREFIX = "ray-"
# What lets this user's programs into this user's Ray.
TOKEN_FILE = Path("~/.ray/auth_token")
# What `ray up` leaves on the machine that heads a cluster.
BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")

SETTINGS = {
    # Tune hands the Train variables on to trials, controllers and workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # the default of 2 s makes every epoch last at least 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000",  # a trial that waits for its slot is not stuck
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its csv, json and TensorBoard files: MLflow has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # tuner/search/driver.py ends a search
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report of an error has no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the journal is the record of a search, not Tune's snapshot
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
PRIVATE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor for each trial; nobody takes this node back
}


def start_together(slots: int) -> None:
    """Let Tune start so many trials at a time; the default, one, fills a thousand slots one actor after the other.

    Where there is one slot they start in their order, which tuner/workers/slots.py goes by.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)


def resolve_address(address: str | None) -> str:
    """`local` for a private Ray, or the address of a running one: never a stranger's found by chance."""
    if address:
        return address
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    return "auto" if BOOTSTRAP_FILE.expanduser().exists() else "local"


@contextmanager
def connect(address: str) -> Iterator[Attempt]:
    """Join the Ray at `address`, or start a private one that ends with the block; nothing of ours stays behind.

    Yields:
        What to clean up after this driver, should it be killed.

    Raises:
        SearchError: nothing answers there.
    """
    settings = SETTINGS | PRIVATE if address == "local" else SETTINGS
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    temporary = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX)) if address == "local" else None
    try:
        with _sigterm_kept():
            if temporary is not None:
                _start_private(temporary)
            else:
                _join(address)
        attempt = Attempt(
            cluster=ray.get_runtime_context().get_session_name(),
            job=ray.get_runtime_context().get_job_id(),
            scratch=str(temporary) if temporary else None,
        )
        with placement.freed(attempt.job):
            yield attempt
    finally:
        with _sigterm_kept():
            ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray's start takes SIGTERM, to exit with 15, and its end leaves it to the kernel; afterwards it means the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _join(address: str) -> None:
    """Connect to a running Ray.

    `ray start` asks for a token wherever this user has one; `ray.init` brings it along only after the same call that
    `ray start` makes (an environment variable set now would come too late: Ray has read it).
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(address=address, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SearchError(
            f"no Ray answers at {address}: {str(error).splitlines()[0]}; is it running, and is its token "
            f"(`ray get-auth-token` there) in ~/.ray/auth_token here?"
        ) from error
    if os.environ.get("OMP_NUM_THREADS") == "1":
        # `ray submit` and `ray job submit` export it to all they run: this driver scores the winner on these CPUs.
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def _start_private(temporary: Path) -> None:
    """Start a Ray that nobody else gets into: it asks for a token (most of its servers listen on every address)."""
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        _temp_dir=str(temporary),
        include_dashboard=False,  # takes seconds to start, and MLflow shows the search
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=True,
    )
    with suppress(OSError):  # none, where authentication was switched off
        TOKEN_FILE.expanduser().chmod(0o600)  # Ray makes it readable for everybody on the machine


def capacity(attempt: Attempt, startable: StartableConfig | None) -> list[Node]:
    """The nodes of the cluster: those that are alive, and those that its autoscaler may still start.

    Args:
        attempt: this driver; nobody starts nodes for a Ray of its own.
        startable: what the experiment says of the autoscaler; None: what `ray up` was told, if it made this cluster.
    """
    alive, bootstrap = nodes(), BOOTSTRAP_FILE.expanduser()
    if attempt.scratch is not None:
        return alive
    if startable is not None:
        kind = Node(cpus=startable.cpu, gpus=startable.gpu)
        return alive + still_startable(alive, [(kind, startable.nodes)], startable.nodes)
    return alive + (startable_by(yaml_tree.read(bootstrap).plain(), alive) if bootstrap.exists() else [])


def startable_by(bootstrap: Mapping[str, Any], alive: Sequence[Node]) -> list[Node]:
    """What the autoscaler of `ray up` may start beside the nodes that are there.

    Args:
        bootstrap: the cluster file, complete, as `ray up` leaves it on the head.
        alive: the nodes that are there, the head among them.
    """
    most = bootstrap.get("max_workers", 0)
    kinds = []
    for name, kind in bootstrap.get("available_node_types", {}).items():
        resources = kind.get("resources", {})
        if name != bootstrap.get("head_node_type") and "CPU" in resources:
            node = Node(cpus=float(resources["CPU"]), gpus=float(resources.get("GPU", 0)))
            kinds.append((node, kind.get("max_workers", most)))
    return still_startable(alive, kinds, most - (len(alive) - 1))


def nodes() -> list[Node]:
    """The machines that are alive."""
    return [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def clean_up(earlier: Sequence[Attempt], now: Attempt) -> None:
    """Remove what drivers that were killed left behind: placement groups on this cluster, folders on this machine."""
    for attempt in earlier:
        if attempt.cluster == now.cluster:
            placement.remove(attempt.job)
        elif attempt.scratch is not None and Path(attempt.scratch).name.startswith(SCRATCH_PREFIX):
            shutil.rmtree(attempt.scratch, ignore_errors=True)
