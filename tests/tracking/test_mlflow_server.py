"""A search tells a real `mlflow server`, which is killed for a while or answers into the void; SQLite, PostgreSQL."""

import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Run

from tests.support.mlflow_server import PASSWORD, Network, Server, postgresql
from tests.support.workplace import Workplace, wait_for
from tuner.errors import SearchError
from tuner.storage import journal, searches
from tuner.storage.journal import TrialHistory
from tuner.tracking import outbox
from tuner.tracking.registry import register_model
from tuner.tracking.tracker import PARENT_TAG, Tracker, trial_of_run

# The tests of this file share two servers: pytest-xdist runs them in one process.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow_server")]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    try:
        if request.param == "sqlite":
            made.start()
            yield made
        else:
            with postgresql() as made.store:
                made.start()
                yield made
                made.kill()
    finally:
        made.kill()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.1)
    caplog.set_level(logging.CRITICAL, logger="tuner.tracking.outbox")


def trial(number: int) -> TrialHistory:
    return TrialHistory(number=number, id=f"s-{number:04d}", values={}, sampler_state={}, status="finished")


def train(tracker: Tracker, history: TrialHistory, epochs: range) -> None:
    tracker.start_trial(history, params={"loss.l1": 0}, tags={"seed": "1"})
    for epoch in epochs:
        tracker.report(history.id, epoch, {"gap": epoch / 10, "loss_train": 1 / epoch}, {"host": "h"})


def finish(tracker: Tracker, history: TrialHistory) -> None:
    tracker.finish_trial(history, history.number + 1, 0.5)


def begin(uri: str, name: str) -> Tracker:
    tracker = Tracker(uri, name, {"git_commit": "abc"})
    tracker.start_search("s", tags={"data_fingerprint": "f"}, params={"trials": 3}, yaml="default: tiny\n")
    return tracker


def runs(server: Server, name: str) -> tuple[Run, list[Run]]:
    """The parent run, and the runs of the trials, sorted by trial."""
    client = mlflow.MlflowClient(server.uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = (run for run in found if PARENT_TAG not in run.data.tags)
    children = [run for run in found if run is not parent]
    assert {run.data.tags[PARENT_TAG] for run in children} <= {parent.info.run_id}
    return parent, sorted(children, key=lambda run: run.data.tags["trial_id"])


def steps(server: Server, run: Run) -> list[int]:
    return [metric.step for metric in mlflow.MlflowClient(server.uri).get_metric_history(run.info.run_id, "gap")]


def model_and_example() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"model": torch.nn.Linear(6, 3).eval(), "example": np.ones((2, 6), np.float32)}


def test_a_lost_answer_creates_nothing_twice(server: Server) -> None:
    network = Network(server)
    name = "lost-answers"
    tracker = Tracker(network.uri, name, {})
    network.lose_next = {
        *("/runs/create", "/runs/log-batch", "/runs/update", "/runs/log-metric", "/runs/log-inputs", "/runs/outputs"),
        *("/logged-models", "/registered-models/create", "/model-versions/create", "/experiment.yaml", "/MLmodel"),
    }
    asked = set(network.lose_next)
    tracker.start_search("s", tags={"data_fingerprint": "f"}, params={"trials": 2}, yaml="default: tiny\n")
    tracker.log_data(name="train", fingerprint="f" * 40, source="train*", num_videos=3, schema="rgb: 4")
    for history in (trial(0), trial(1)):
        train(tracker, history, range(1, 4))
        network.lose_next |= {"/runs/create", "/runs/log-batch"}  # lose these answers again, later in the search
        finish(tracker, history)
    tracker.log_winner(
        metrics={"best/validate/gap": 0.5},
        tags={"best_trial": "s-0000"},
        log_model=partial(register_model, name=name, metadata={"trial": "s-0000"}, **model_and_example()),
    )
    tracker.end_search("FINISHED")
    assert tracker.close() == 0 and tracker.refused == []
    assert asked <= network.lost.keys(), f"no such request: {asked - network.lost.keys()}"

    parent, children = runs(server, name)
    assert [child.data.tags["trial_id"] for child in children] == ["s-0000", "s-0001"]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert [steps(server, child) for child in children] == [[1, 2, 3], [1, 2, 3]]
    client = mlflow.MlflowClient(server.uri)
    best = client.get_metric_history(parent.info.run_id, "gap_best")
    assert [metric.step for metric in best] == [1, 2]
    assert len(parent.inputs.dataset_inputs) == 1
    assert [version.version for version in client.search_model_versions(f"name = '{name}'")] == ["1"]
    assert len(client.search_logged_models([parent.info.experiment_id])) == 1
    network.shutdown()
    network.server_close()


def test_artifacts_and_the_model_go_through_the_server(server: Server, tmp_path: Path) -> None:
    tracker, name, given = begin(server.uri, "artifacts"), "artifacts", model_and_example()
    tracker.log_winner(
        metrics={"best/validate/gap": 0.5},
        tags={},
        log_model=partial(register_model, name=name, metadata={"trial": "s-0000"}, **given),
    )
    tracker.end_search("FINISHED")
    assert tracker.close() == 0 and tracker.refused == []
    parent, _ = runs(server, name)
    assert parent.info.artifact_uri.startswith("mlflow-artifacts:")
    mlflow.set_tracking_uri(server.uri)
    assert mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/experiment.yaml") == "default: tiny\n"
    (logged,) = mlflow.MlflowClient(server.uri).search_logged_models([parent.info.experiment_id])
    assert logged.artifact_location.startswith("mlflow-artifacts:")
    folder = mlflow.artifacts.download_artifacts(f"models:/{name}@best", dst_path=str(tmp_path / "model"))
    assert [path.name for path in Path(folder).rglob("*.pt2")] and not list(Path(folder).rglob("*.pkl"))
    loaded = mlflow.pytorch.load_model(f"models:/{name}@best")
    features_BD = torch.randn(5, 6)
    torch.testing.assert_close(loaded(features_BD), given["model"](features_BD))


def test_a_server_that_is_killed_and_restarted_gets_everything_once_and_in_order(server: Server) -> None:
    name = "killed-for-a-while"
    tracker = begin(server.uri, name)
    train(tracker, trial(0), range(1, 4))
    wait_for(lambda: "s-0000" in tracker._runs)
    server.kill()
    try:
        for number in (1, 2):  # none of this waits for the server
            train(tracker, trial(number), range(1, 4))
            finish(tracker, trial(number))
        finish(tracker, trial(0))
        with pytest.raises(SearchError, match=r"MLflow at http://127\.0\.0\.1:\d+: .*refused"):
            Tracker(server.uri, name, {})  # a new search does not begin
        with pytest.raises(SearchError, match="MLflow at"):
            trial_of_run("0" * 32, server.uri)
    finally:
        server.start()
    tracker.end_search("FINISHED")
    assert tracker.close() == 0 and tracker.refused == []
    parent, children = runs(server, name)
    assert [child.data.tags["trial_id"] for child in children] == ["s-0000", "s-0001", "s-0002"]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert [steps(server, child) for child in children] == [[1, 2, 3]] * 3
    best = mlflow.MlflowClient(server.uri).get_metric_history(parent.info.run_id, "gap_best")
    at = {metric.step: metric.timestamp for metric in best}
    assert len(best) == 3 and at[2] <= at[3] <= at[1]  # in the order in which they ended; some in the same millisecond


def test_the_next_driver_sends_what_a_server_has_missed(server: Server) -> None:
    name = "never-came-back"
    tracker = begin(server.uri, name)
    train(tracker, trial(0), range(1, 3))
    wait_for(lambda: tracker._logged.get("s-0000") == {1, 2})
    server.kill()
    try:
        tracker.report("s-0000", 3, {"gap": 0.3}, {})
        finish(tracker, trial(0))
        tracker.end_search("FINISHED")
        said: list[str] = []
        assert tracker.close(patience=0.5, print_line=said.append) == 3
    finally:
        server.start()
    assert runs(server, name)[0].info.status == "RUNNING"  # the server was away

    again = begin(server.uri, name)
    train(again, trial(0), range(1, 4))
    finish(again, trial(0))
    again.end_search("FINISHED")
    assert again.close() == 0 and again.refused == []
    parent, children = runs(server, name)
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert [steps(server, child) for child in children] == [[1, 2, 3]]


def test_the_database_password_is_in_no_log_and_no_command_line(server: Server) -> None:
    if not server.store:
        pytest.skip("SQLite has no password")
    psutil = pytest.importorskip("psutil")
    assert server.process is not None
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    assert len(family) > 1
    for process in family:
        assert PASSWORD not in " ".join(process.cmdline())
    assert PASSWORD not in server.log


def subtree(process: subprocess.Popen[str]) -> str:
    """The command lines of a driver and of the processes that it started."""
    psutil = pytest.importorskip("psutil")
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return "\n".join(" ".join(member.cmdline()) for member in family)


@pytest.mark.fault
@pytest.mark.xdist_group("search_and_its_server")
def test_a_search_completes_without_its_server_and_a_resume_sends_the_rest(
    workplace: Workplace,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    fault_row: Callable[..., None],
) -> None:
    """Nothing: this driver or the next one sends MLflow what it has missed."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://tuner:{PASSWORD}@127.0.0.1:{server.port}")
        running = workplace.start("tiny", "--trials", "2")
        workplace.wait_for_line(running, "trial 000  epoch 2/")
        assert PASSWORD not in subtree(running)
        server.kill()
        wait_for(lambda: "Ctrl-C ends the wait" in workplace.printed() or running.poll() is not None, 400)
        assert "more writes; Ctrl-C ends the wait" in workplace.printed()  # the search itself has ended
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 0, workplace.printed()
        printed = workplace.printed()
        assert "best trial" in printed and "has not received" in printed and "--resume" in printed
        (directory,) = searches.folders(workplace.folder / "storage", "tiny")
        assert journal.read(directory).ended == "planned"

        code, printed = workplace.run("tiny", "--resume", output="away.txt")
        assert code == 2 and "MLflow at" in printed  # the server is still away
        server.start()
        code, printed = workplace.run("tiny", "--resume", output="resumed.txt")
        assert code == 0 and "0 of 2 trials to run" in printed, printed
        code, printed = workplace.run("tiny", "--resume", output="again.txt")
        assert code == 2 and "has ended" in printed  # nothing is left to write
        parent, children = runs(server, "tiny")
        assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
        assert [sorted(steps(server, child)) for child in children] == [list(range(1, 13))] * 2
        assert mlflow.MlflowClient(server.uri).get_model_version_by_alias("tiny", "best").run_id == parent.info.run_id
    finally:
        server.kill()
    everywhere = [path for path in workplace.folder.rglob("*") if path.is_file()]
    assert [path for path in everywhere if PASSWORD.encode() in path.read_bytes()] == []
    fault_row("the MLflow server gone for good, then back", lost_epochs=0, recovery_seconds=None)
