"""What every test gets: a scrubbed environment, and the places that tests share."""

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

from tests.support.workplace import EXPERIMENT, PROJECT, Workplace

if TYPE_CHECKING:  # the tests that need neither start without torch
    from tests.support.finished import FinishedSearch

SHARED_DATA = PROJECT.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_counts() -> None:
    """A shell ignores Ctrl-C for what it starts in the background, and that is inherited: not by these tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes what belongs to the person who runs it."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "TUNER_STORAGE", "YT8M_DIR", "YT8M_SMALL_DIR", "AUDIOSET_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order: how many cores a machine has must not show in the numbers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def yt8m() -> Path:
    """The real YouTube-8M shards beside the project."""
    if not (SHARED_DATA / "yt8m").exists():
        pytest.skip("the real shards (../shared/data/yt8m) are not here")
    return SHARED_DATA / "yt8m"


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A folder with a tiny experiment in it; whatever was started there is ended."""
    (tmp_path / "experiments.yaml").write_text(textwrap.dedent(EXPERIMENT))
    place = Workplace(tmp_path)
    yield place
    for process in place.started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def fault_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A test of a fault says what it cost: `fault_row("kill -9 of the worker", lost_epochs=0, recovery_seconds=8.1)`.

    One JSON line for benchmarks/faults.py, which names the file in $FAULT_ROWS; the test's docstring is the row's rest.
    `recovery_seconds` is None where nothing had to recover.
    """

    def state(fault: str, *, lost_epochs: int, recovery_seconds: float | None) -> None:
        if "FAULT_ROWS" in os.environ:
            row = {
                "test": request.node.nodeid,
                "fault": fault,
                "lost_epochs": lost_epochs,
                "recovery_seconds": recovery_seconds,
            }
            with Path(os.environ["FAULT_ROWS"]).open("a") as file:
                file.write(json.dumps(row) + "\n")

    return state


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks S3, in this process."""
    import logging

    pytest.importorskip("s3fs", reason='s3fs is not installed: pip install "video-tuner[test-s3]"')
    moto = pytest.importorskip("moto.server", reason='moto is not installed: pip install "video-tuner[test-s3]"')
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket of its own."""
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
    """Shared by all tests, so only to be read."""
    from tests.support.finished import build

    return build(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def own(finished_search: "FinishedSearch", tmp_path: Path) -> "FinishedSearch":
    """A copy of it to add to, or to spoil; shards and cache stay where they are."""
    folder = tmp_path / "own"
    shutil.copytree(finished_search.storage, folder / "storage")
    shutil.copy(finished_search.folder / "experiments.yaml", folder)
    return replace(finished_search, folder=folder)


@pytest.fixture(scope="session")
def exported(finished_search: "FinishedSearch", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its best trial's model; only to be read as well."""
    target = tmp_path_factory.mktemp("exports") / "best"
    finished_search.export(target)
    return target
