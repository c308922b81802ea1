"""A real SQLite store for the tests of the tracker, and drivers that write to it."""

import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from tuner.tracking import outbox
from tuner.tracking.tracker import PARENT_TAG, Tracker

Start = Callable[..., Tracker]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Retry at once, and log no refusal, which the tests provoke."""
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    caplog.set_level(logging.CRITICAL, logger="tuner.tracking.outbox")


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, because creating its tables takes seconds; each test has its own experiment in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def name() -> str:
    return f"tiny-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def said() -> list[str]:
    """What the trackers of a test tell the user."""
    return []


@pytest.fixture
def start(uri: str, name: str, said: list[str]) -> Iterator[Start]:
    """Starts a tracker of one search; all trackers of a test write to the same runs."""
    trackers = []

    def begin(**search: Any) -> Tracker:
        tracker = Tracker(uri, name, {"git_commit": "abc", "version.torch": "2"}, said.append)
        trackers.append(tracker)
        facts = {"tags": {"data_fingerprint": "f"}, "params": {"trials": 3}, "yaml": "default: tiny\n"} | search
        tracker.start_search("s-1", **facts)
        return tracker

    yield begin
    for tracker in trackers:
        if tracker._outbox._thread.is_alive():
            tracker.close()
        tracker.client._tracking_client.store.engine.dispose()


@pytest.fixture
def runs(uri: str, name: str) -> Callable[[], tuple[Run, dict[str, Run]]]:
    """Reads the parent run, and the runs of the trials by trial_id."""

    def read() -> tuple[Run, dict[str, Run]]:
        client = mlflow.MlflowClient(uri)
        found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        (parent,) = (run for run in found if PARENT_TAG not in run.data.tags)
        return parent, {run.data.tags["trial_id"]: run for run in found if run is not parent}

    return read
