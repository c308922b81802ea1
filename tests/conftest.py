"""Fixtures of all tests: an environment without the user's own settings, and folders, servers and searches to share."""

import json
import os
import shutil
import signal
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.missing import needed
from tests.support.workplace import EXPERIMENT, PROJECT, Workplace

if TYPE_CHECKING:  # the tests that need neither start without torch
    from tests.support.finished import FinishedSearch

SHARED_DATA = PROJECT.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_counts() -> None:
    """Handle Ctrl-C even where a shell started pytest in the background, which makes every child process ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep every test away from the storage, cache and servers of the person who runs it."""
    of_programs = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "TUNER_STORAGE", "PYTEST_ADDOPTS")
    for name in (*of_programs, "YT8M_DIR", "YT8M_SMALL_DIR", "AUDIOSET_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the order of summation, and so the numbers, would depend on the number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def yt8m() -> Path:
    """Return the folder of the real YouTube-8M shards, which lies beside the project on some machines."""
    if not (SHARED_DATA / "yt8m").exists():
        pytest.skip("there are no real shards in ../shared/data/yt8m")
    return SHARED_DATA / "yt8m"


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """Yield a folder with a tiny experiment; every process that the test started there is killed at the end."""
    (tmp_path / "experiments.yaml").write_text(textwrap.dedent(EXPERIMENT))
    place = Workplace(tmp_path)
    yield place
    for process in place.started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def fault_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that records what a fault cost.

    `fault_row("kill -9 of the worker", lost_epochs=0, recovery_seconds=8.1)` appends one JSON line to the file that
    benchmarks/faults.py names in $FAULT_ROWS, and does nothing without it. `recovery_seconds` is None where nothing had
    to recover. The test's docstring says what the fault may lose at most; it becomes a cell of the table as well.
    """

    def record(fault: str, *, lost_epochs: int, recovery_seconds: float | None) -> None:
        if "FAULT_ROWS" in os.environ:
            row = {
                "test": request.node.nodeid,
                "fault": fault,
                "lost_epochs": lost_epochs,
                "recovery_seconds": recovery_seconds,
            }
            with Path(os.environ["FAULT_ROWS"]).open("a") as file:
                file.write(json.dumps(row) + "\n")

    return record


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start a server with the protocol of S3 in this process; yields its address."""
    import logging

    needed("s3fs", 'pip install "video-tuner[test-s3]"')
    moto = needed("moto.server", 'pip install "video-tuner[test-s3]"')
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a new bucket; returns its URL."""
    import s3fs

    settings = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def finished_search(tmp_path_factory: pytest.TempPathFactory) -> "FinishedSearch":
    """Return a finished search that all tests share: they only read it."""
    from tests.support.finished import make_finished_search

    return make_finished_search(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def own(finished_search: "FinishedSearch", tmp_path: Path) -> "FinishedSearch":
    """Return a copy of `finished_search` that the test may change; it reads the same shards and the same cache."""
    folder = tmp_path / "own"
    shutil.copytree(finished_search.storage, folder / "storage")
    shutil.copy(finished_search.folder / "experiments.yaml", folder)
    return replace(finished_search, folder=folder)


@pytest.fixture(scope="session")
def exported(finished_search: "FinishedSearch", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the best trial of `finished_search`; tests only read the folder that is returned."""
    target = tmp_path_factory.mktemp("exports") / "best"
    finished_search.export(target)
    return target
