"""What MLflow has of a search, in a real SQLite store that fails for a while in some tests."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

from tests.support.finished import FinishedSearch
from tuner.errors import SearchError
from tuner.search import replay
from tuner.storage.journal import TrialHistory
from tuner.tracking import outbox
from tuner.tracking import tracker as tracker_module
from tuner.tracking.tracker import PARENT_TAG, Tracker, _is_transient, trial_of_run
from tuner.tracking.uri import ui_command

PARAMS = {"optimizer.kind": "adam", "optimizer.learning_rate": 0.01, "loss.l1": 0}

Start = Callable[..., Tracker]


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"status {status}", response=response)


def trial(number: int, **facts: Any) -> TrialHistory:
    made = TrialHistory(number=number, id=f"s-1-{number:04d}", values={}, sampler_state={}, status="finished")
    for key, value in facts.items():
        setattr(made, key, value)
    return made


def metrics(epoch: int) -> dict[str, float]:
    return {"gap": epoch / 10, "loss_train": 5.0 / epoch, "learning_rate": 0.01}


def train(tracker: Tracker, history: TrialHistory, epochs: range = range(1, 4)) -> None:
    tracker.start_trial(history, params=PARAMS, tags={"seed": "1"})
    for epoch in epochs:
        tracker.report(history.id, epoch, metrics(epoch), {"host": "h", "device": "cpu"})


def finish(tracker: Tracker, history: TrialHistory) -> None:
    tracker.finish_trial(history, history.number + 1, 0.5)


def steps(uri: str, run: Run, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, key)]


class FlakyClient:
    """MLflow's client, of which the next `failures` calls of a method raise an error."""

    def __init__(self, client: Any, method: str, failures: int, error: Exception) -> None:
        self.client, self.method, self.failures, self.error = client, method, failures, error

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        if name != self.method:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise self.error
            return found(*arguments, **options)

        return call


def test_a_search_is_a_parent_with_a_child_for_each_trial(uri: str, start: Start, runs: Any, name: str) -> None:
    tracker = start()
    for number in range(2):
        train(tracker, trial(number))
        finish(tracker, trial(number))
    tracker.end_search("FINISHED")
    assert tracker.close() == 0

    parent, children = runs()
    assert parent.info.run_name == parent.data.tags["search_id"] == "s-1"
    assert parent.data.tags["data_fingerprint"] == "f"
    assert parent.data.params == {"trials": "3"}
    assert parent.info.status == "FINISHED"
    assert mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/experiment.yaml") == "default: tiny\n"
    assert sorted(children) == ["s-1-0000", "s-1-0001"]
    for number, child in enumerate(children[id] for id in sorted(children)):
        expected = {PARENT_TAG: parent.info.run_id, "trial_number": str(number), "seed": "1", "device": "cpu"}
        assert (expected | {"host": "h", "git_commit": "abc", "version.torch": "2"}).items() <= child.data.tags.items()
        assert child.data.params == {key: str(value) for key, value in PARAMS.items()}
        assert child.info.status == "FINISHED" and child.info.run_name == f"trial {number:03d}"
        assert steps(uri, child, "gap") == [(1, 0.1), (2, 0.2), (3, 0.3)]
        assert steps(uri, child, "learning_rate") == [(epoch, 0.01) for epoch in (1, 2, 3)]
    assert steps(uri, parent, "gap_best") == [(1, 0.5), (2, 0.5)]


def test_a_resumed_search_finds_its_runs_and_logs_no_epoch_twice(uri: str, start: Start, runs: Any) -> None:
    first = start()
    train(first, trial(0), range(1, 3))
    first.suspend_trials()
    first.end_search("KILLED")
    assert first.close() == 0
    parent, children = runs()
    assert {run.info.status for run in (parent, *children.values())} == {"KILLED"}

    second = start()
    train(second, trial(0), range(1, 4))  # a resumed trial reports all of its epochs again
    finish(second, trial(0))
    second.end_search("FINISHED")
    assert second.close() == 0
    again, found = runs()
    assert again.info.run_id == parent.info.run_id and len(found) == 1
    assert {run.info.status for run in (again, *found.values())} == {"FINISHED"}
    assert steps(uri, found["s-1-0000"], "gap") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert steps(uri, found["s-1-0000"], "loss_train") == [(epoch, 5.0 / epoch) for epoch in (1, 2, 3)]


def test_the_runs_of_a_killed_driver_are_closed_by_the_next_search(
    uri: str, start: Start, runs: Any, name: str
) -> None:
    killed = start()
    train(killed, trial(0))
    train(killed, trial(1))
    finish(killed, trial(1))
    assert killed.close() == 0
    following = Tracker(uri, name, {})
    following.suspend_searches(["s-1", "unknown"])
    assert following.close() == 0 and not following.refused
    following.client._tracking_client.store.engine.dispose()
    parent, children = runs()
    assert parent.info.status == "KILLED"
    assert {id: run.info.status for id, run in children.items()} == {"s-1-0000": "KILLED", "s-1-0001": "FINISHED"}


def test_an_extended_search_continues_its_run(start: Start, runs: Any) -> None:
    first = start(params={"trials": 3})
    first.end_search("FINISHED")
    assert first.close() == 0
    second = start(params={"trials": 5})
    second.end_search("FINISHED")
    assert second.close() == 0  # MLflow refuses to change a parameter
    assert runs()[0].info.status == "FINISHED"


def test_a_trial_that_is_tried_again_continues_its_run_and_loses_its_error(start: Start, runs: Any) -> None:
    first, history = start(), trial(0, status="failed", error="its workers were killed")
    train(first, history)
    finish(first, history)
    first.end_search("FINISHED")
    assert first.close() == 0
    history.status, history.error = "running", None
    second = start()
    train(second, history)
    history.status = "finished"
    finish(second, history)
    assert second.close() == 0
    (child,) = runs()[1].values()
    assert child.info.status == "FINISHED" and "error" not in child.data.tags


def test_every_way_a_trial_can_end_is_recorded(start: Start, runs: Any) -> None:
    tracker = start()
    ends = [
        trial(0),
        trial(1, stopped_by="asha"),
        trial(2, status="failed", error="TrialDiverged: the loss is not finite"),
        trial(3, status="running"),
    ]
    for history in ends:
        train(tracker, history)
        if history.status != "running":
            finish(tracker, history)
    tracker.suspend_trials()
    tracker.end_search("KILLED")
    assert tracker.close() == 0
    parent, children = runs()
    told = [children[history.id] for history in ends]
    assert [child.info.status for child in told] == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    assert [child.data.tags.get("stopped_by") for child in told] == [None, "asha", None, None]
    assert told[2].data.tags["error"] == "TrialDiverged: the loss is not finite"
    assert parent.info.status == "KILLED"


@pytest.mark.parametrize(
    "error",
    [MlflowException("database is locked"), ConnectionError("no route to the server")],
    ids=["locked", "away"],
)
@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_terminated"])
def test_a_store_that_is_unavailable_for_a_while_gets_every_write_once(
    uri: str, start: Start, runs: Any, method: str, error: Exception
) -> None:
    tracker = start()
    tracker.client = FlakyClient(tracker.client, method, 3, error)
    train(tracker, trial(0))
    finish(tracker, trial(0))
    tracker.end_search("FINISHED")
    assert tracker.close() == 0
    parent, children = runs()
    assert [run.info.status for run in (parent, *children.values())] == ["FINISHED", "FINISHED"]
    assert steps(uri, children["s-1-0000"], "gap") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    tracker.client = tracker.client.client


def test_a_slow_store_does_not_delay_the_search(start: Start) -> None:
    tracker = start()
    client = tracker.client
    tracker.client = FlakyClient(client, "log_batch", 10**9, ConnectionError("away"))
    train(tracker, trial(0), range(1, 50))  # returns at once although nothing can be written
    tracker.client.failures = 0
    finish(tracker, trial(0))
    assert tracker.close() == 0
    tracker.client = client


def test_a_store_that_stays_unavailable_delays_the_end_by_the_patience_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.2)
    tracker = start()
    client = tracker.client
    tracker.client = FlakyClient(client, "log_batch", 10**9, ConnectionError("away"))
    train(tracker, trial(0), range(1, 3))
    assert tracker.close() > 0
    tracker.client = client


def test_a_write_that_mlflow_refuses_is_logged_and_the_rest_is_written(uri: str, start: Start, runs: Any) -> None:
    tracker = start()
    train(tracker, trial(0), range(1, 2))
    tracker.report("s-1-0000", 2**70, {"gap": 1.0}, {"host": "h"})  # more than MLflow can count
    tracker.report("s-1-0000", 3, metrics(3), {"host": "h"})
    finish(tracker, trial(0))
    assert tracker.close() == 0  # nothing is left to deliver
    assert len(tracker.refused) == 1 and "too large" in tracker.refused[0]
    _, children = runs()
    assert steps(uri, children["s-1-0000"], "gap") == [(1, 0.1), (3, 0.3)]


def test_a_run_that_lacks_a_refused_write_is_completed_by_a_resumed_search(uri: str, start: Start, runs: Any) -> None:
    first = start()
    client = first.client
    refusal = MlflowException("no", error_code=INVALID_PARAMETER_VALUE)
    first.client = FlakyClient(client, "log_batch", 0, refusal)
    train(first, trial(0), range(1, 2))
    finish(first, trial(0))
    train(first, trial(1), range(1, 1))
    first.report("s-1-0001", 2**70, {"gap": 1.0}, {})
    finish(first, trial(1))
    first.end_search("FINISHED")
    assert first.close() == 0 and len(first.refused) == 1
    first.client = client
    parent, children = runs()
    assert parent.info.status == "KILLED", "what was refused is not told"
    assert {id: run.info.status for id, run in children.items()} == {"s-1-0000": "FINISHED", "s-1-0001": "KILLED"}

    second = start()
    for number in range(2):
        train(second, trial(number), range(1, 2))
        finish(second, trial(number))
    second.end_search("FINISHED")
    assert second.close() == 0 and not second.refused
    parent, children = runs()
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"} and len(children) == 2
    assert all(steps(uri, run, "gap") == [(1, 0.1)] for run in children.values())


def delete_experiment(client: mlflow.MlflowClient, name: str) -> None:
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)


def delete_parent(client: mlflow.MlflowClient, name: str) -> None:
    delete_runs(client, name, "s-1")


def delete_trial(client: mlflow.MlflowClient, name: str) -> None:
    delete_runs(client, name, "trial 000")


def delete_runs(client: mlflow.MlflowClient, name: str, run_name: str) -> None:
    for run in client.search_runs([client.get_experiment_by_name(name).experiment_id]):
        if run.info.run_name == run_name:
            client.delete_run(run.info.run_id)


DELETIONS = [delete_experiment, delete_parent, delete_trial]


@pytest.mark.parametrize("delete", DELETIONS)
def test_what_was_deleted_in_mlflow_is_restored_when_the_search_is_resumed(
    uri: str, start: Start, runs: Any, name: str, delete: Callable[..., None], said: list[str]
) -> None:
    first = start()
    train(first, trial(0), range(1, 3))
    first.suspend_trials()
    first.end_search("KILLED")
    assert first.close() == 0
    delete(mlflow.MlflowClient(uri), name)
    second = start()
    train(second, trial(0))
    finish(second, trial(0))
    second.end_search("FINISHED")
    assert second.close() == 0 and not second.refused
    parent, children = runs()
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert steps(uri, children["s-1-0000"], "gap") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(said) == 1 and "had been deleted, and is restored" in said[0]


@pytest.mark.parametrize("delete", DELETIONS)
def test_what_is_deleted_in_mlflow_while_the_search_runs_is_restored(
    uri: str, start: Start, runs: Any, name: str, delete: Callable[..., None], said: list[str]
) -> None:
    tracker = start()
    train(tracker, trial(0), range(1, 3))
    deadline = time.monotonic() + 20
    while len(tracker._logged.get("s-1-0000", ())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    delete(mlflow.MlflowClient(uri), name)
    tracker.report("s-1-0000", 3, metrics(3), {})
    finish(tracker, trial(0))
    train(tracker, trial(1))
    finish(tracker, trial(1))
    tracker.end_search("FINISHED")
    assert tracker.close() == 0 and not tracker.refused
    parent, children = runs()
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"} and len(children) == 2
    assert steps(uri, children["s-1-0000"], "gap") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(said) == 1 and "had been deleted, and is restored" in said[0]


def test_a_trial_whose_parent_is_gone_for_good_gets_the_new_one(uri: str, start: Start, runs: Any) -> None:
    first = start()
    train(first, trial(0), range(1, 3))
    first.suspend_trials()
    assert first.close() == 0
    client = mlflow.MlflowClient(uri)
    client.delete_run(first.parent_id)
    client._tracking_client.store._hard_delete_run(first.parent_id)  # as `mlflow gc` does
    client._tracking_client.store.engine.dispose()
    second = start()
    train(second, trial(0))
    finish(second, trial(0))
    assert second.close() == 0 and not second.refused
    parent, children = runs()
    assert parent.info.run_id != first.parent_id
    assert children["s-1-0000"].data.tags[PARENT_TAG] == parent.info.run_id


def test_the_data_is_logged_as_datasets(start: Start, runs: Any) -> None:
    tracker = start()
    for split, number in (("train", 300), ("validate", 100)):
        tracker.log_data(
            name=split,
            fingerprint="0123456789abcdef" * 4,
            source=f"{split}*.tfrecord",
            num_videos=number,
            schema="rgb: 4",
        )
    assert tracker.close() == 0
    inputs = runs()[0].inputs.dataset_inputs
    told = {(i.dataset.name, i.dataset.source, i.dataset.profile, i.tags[0].value) for i in inputs}
    assert told == {
        ("train", "train*.tfrecord", '{"num_videos": 300}', "train"),
        ("validate", "validate*.tfrecord", '{"num_videos": 100}', "validate"),
    }
    assert {i.dataset.digest for i in inputs} == {("0123456789abcdef" * 4)[:36]}


def test_an_unreachable_mlflow_is_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database")
    with pytest.raises(SearchError) as told:
        Tracker(f"sqlite:///{tmp_path / 'file'}/mlflow.db", "tiny", {})
    assert str(told.value).startswith("MLflow at sqlite:///") and "\n" not in str(told.value)


def test_a_trial_is_found_by_its_run(uri: str, start: Start, runs: Any, finished_search: FinishedSearch) -> None:
    tracker = start()
    renamed = trial(1)
    renamed.id = "trial-1"
    train(tracker, renamed)
    assert tracker.close() == 0
    parent, children = runs()
    run_id = children["trial-1"].info.run_id
    assert trial_of_run(run_id, uri) == "trial-1"
    assert trial_of_run(parent.info.run_id, uri) is None
    assert trial_of_run("0" * 32, uri) is None
    found = replay.find(run_id, finished_search.storage, uri, finished_search.folder / "experiments.yaml")
    assert found.number == 1 and found.values == finished_search.best.values
    assert (found.encoders.trial_id, found.encoders.takes_own) == ("trial-1", False)


def test_looking_for_a_trial_creates_no_database(tmp_path: Path) -> None:
    assert trial_of_run("0" * 32, f"sqlite:///{tmp_path / 'mlflow.db'}") is None
    assert not list(tmp_path.iterdir())


def test_runs_on_several_result_pages_are_all_found(
    start: Start, runs: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "MAX_RUNS", 2)
    tracker = start()
    for number in range(5):
        train(tracker, trial(number), range(1, 2))
    tracker.suspend_trials()
    tracker.close()
    assert [run.info.status for run in runs()[1].values()] == ["KILLED"] * 5


def test_no_message_shows_the_credentials_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "-")  # so that the test restores them at its end
    with pytest.raises(SearchError) as told:
        Tracker("http://user:hunter%402@127.0.0.1:1", "tiny", {})
    assert "MLflow at http://127.0.0.1:1: " in str(told.value) and "hunter" not in str(told.value)
    assert told.value.__cause__ is None
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hunter@2"  # where MLflow finds it
    assert ui_command("mlflow", "http://user:hunter2@host:5000") == "open http://***@host:5000"


@pytest.mark.parametrize(
    "error, passing",
    [
        (ConnectionError("refused"), True),
        (TimeoutError("slow"), True),
        (requests.ConnectionError("gone"), True),
        (requests.ReadTimeout("slow"), True),
        (http_error(502), True),
        (http_error(429), True),
        (http_error(403), False),
        (MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("API request failed with exception HTTPConnectionPool(...)"), True),
        (MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST), False),
        (MlflowException("bad key", error_code=INVALID_PARAMETER_VALUE), False),
        (KeyError("trial"), False),
    ],
    ids=str,
)
def test_transient_errors_are_distinguished_from_refusals(error: Exception, passing: bool) -> None:
    assert _is_transient(error) is passing
