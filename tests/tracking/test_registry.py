"""The best model in MLflow's registry."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from tests.support.finished import FinishedSearch
from tests.support.workplace import PROJECT
from tuner.tracking.registry import register_model
from tuner.tracking.tracker import Tracker

Start = Callable[..., Tracker]


def test_the_winner_is_registered_as_a_model_without_pickle(
    uri: str, start: Start, runs: Any, name: str, finished_search: FinishedSearch
) -> None:
    model = finished_search.load_best()
    example = np.asarray(finished_search.data.validate.features_ND[:2], np.float32)
    tracker = start()
    for best in (
        "s-1-0001",
        "s-1-0000",
        "s-1-0000",
    ):  # extended, and then resumed
        tracker.log_winner(
            metrics={"best/validate/gap": 0.5},
            tags={"best_trial": best},
            tables={"classes-validate.csv": f"class,name\n0,{best}\n"},
            log_model=partial(register_model, name=name, model=model, example=example, metadata={"trial": best}),
        )
    tracker.end_search("FINISHED")
    assert tracker.close() == 0

    parent, _ = runs()
    assert parent.data.metrics["best/validate/gap"] == 0.5 and parent.data.tags["best_trial"] == "s-1-0000"
    assert "classes-validate.csv" in [artifact.path for artifact in tracker.client.list_artifacts(parent.info.run_id)]
    assert parent.info.status == "FINISHED"
    client = mlflow.MlflowClient(uri)
    best = client.get_model_version_by_alias(name, "best")
    assert int(best.version) == 2 and best.run_id == parent.info.run_id
    mlflow.set_tracking_uri(uri)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@best"))
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert any(file.endswith(".pt2") for file in files), files
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pth"))], files
    info = mlflow.models.get_model_info(f"models:/{name}@best")
    assert info.signature.inputs.inputs[0].shape == (-1, example.shape[1])
    assert info.saved_input_example_info is not None and info.metadata == {"trial": "s-1-0000"}
    loaded = mlflow.pytorch.load_model(f"models:/{name}@best")
    videos_ND = torch.from_numpy(np.asarray(finished_search.data.validate.features_ND[:7], np.float32))
    with torch.no_grad():
        torch.testing.assert_close(loaded(videos_ND), model(videos_ND), rtol=1e-5, atol=1e-5)


def test_after_the_warm_up_a_model_is_exported_without_large_imports() -> None:
    program = (
        "import sys, torch\n"
        "from tuner.tracking.registry import warm_up\n"
        "if sys.argv[1:]: warm_up()\n"
        "before = len(sys.modules)\n"
        "torch.export.export(torch.nn.Linear(6, 3), (torch.ones(2, 6),))\n"
        "print(len(sys.modules) - before)\n"
    )

    def imported(*arguments: str) -> int:
        command = [sys.executable, "-c", program, *arguments]
        return int(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout)

    assert imported("warm") < imported() / 10


def test_a_model_whose_upload_was_interrupted_is_completed(
    uri: str, start: Start, runs: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, failures = mlflow.MlflowClient.log_model_artifacts, [ConnectionError("away"), ConnectionError("away")]

    def interrupted(client: mlflow.MlflowClient, *arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return upload(client, *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", interrupted)
    tracker, model = start(), torch.nn.Linear(6, 3).eval()
    given = {"name": name, "model": model, "example": np.ones((2, 6), np.float32), "metadata": {"trial": "s-1-0000"}}
    tracker.log_winner(metrics={"best/validate/gap": 0.5}, tags={}, log_model=partial(register_model, **given))
    assert tracker.close() == 0 and tracker.refused == [] and failures == []
    parent, _ = runs()
    (logged,) = tracker.client.search_logged_models([parent.info.experiment_id])
    assert logged.status == "READY" and logged.source_run_id == parent.info.run_id
    (version,) = tracker.client.search_model_versions(f"name = '{name}'")
    assert tracker.client.get_model_version_by_alias(name, "best").version == version.version


@pytest.mark.parametrize("deleted", ["the registered model", "its version", "the logged model"])
def test_a_model_that_was_deleted_in_mlflow_is_registered_again(
    start: Start, runs: Any, name: str, deleted: str
) -> None:
    given: dict[str, Any] = {"name": name, "model": torch.nn.Linear(6, 3).eval()}
    given |= {"example": np.ones((2, 6), np.float32), "metadata": {"trial": "s-1-0000"}}
    for attempt in range(2):
        tracker = start()
        tracker.log_winner(metrics={"best/validate/gap": 0.5}, tags={}, log_model=partial(register_model, **given))
        tracker.end_search("FINISHED")
        assert tracker.close() == 0 and tracker.refused == []
        client = tracker.client
        version = client.get_model_version_by_alias(name, "best")
        if attempt == 0:
            match deleted:
                case "the registered model":
                    client.delete_registered_model(name)
                case "its version":
                    client.delete_model_version(name, version.version)
                case "the logged model":
                    client.delete_logged_model(version.source.removeprefix("models:/"))
    assert client.get_logged_model(version.source.removeprefix("models:/")).status == "READY"
    assert runs()[0].info.status == "FINISHED"
