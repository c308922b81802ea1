"""What tests of whole searches ask of one: its journal, its MLflow runs, its processes, and what a fault cost it."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.workplace import Workplace, wait_for
from tuner.config import experiment as config
from tuner.storage import journal, searches
from tuner.storage.journal import SearchHistory
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train

# Ray's processes of a trial.
OF_A_TRIAL = ("ImplicitFunc", "TrainController", "RayTrainWorker")


def search_of(place: Workplace) -> SearchHistory:
    """The one search of the folder."""
    return journal.read(folder_of(place))


def folder_of(place: Workplace) -> Path:
    """Where it lives."""
    (directory,) = searches.folders(place.folder / "storage", "tiny")
    return directory


def records_of(place: Workplace) -> list[dict[str, Any]]:
    """Every line of its journal, with its time."""
    return [json.loads(line) for line in (folder_of(place) / "journal.jsonl").read_text().splitlines()]


def runs_of(place: Workplace) -> Iterator[tuple[dict[str, str], str, list[int]]]:
    """Tags, status and logged epochs of every MLflow run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            history = client.get_metric_history(run.info.run_id, "gap")
            yield run.data.tags, run.info.status, [metric.step for metric in history]


def title_of(process: psutil.Process) -> str:
    """Its name and command line; nothing, where it is gone by now."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return f"{process.name()} {' '.join(process.cmdline())}"
    return ""


def processes_of(place: Workplace, name: str = "") -> list[psutil.Process]:
    """The processes that were started in this folder and live, whoever started them; `name`: of Ray's, by title."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            title = " ".join(process.cmdline())
            if title and process.cwd().startswith(str(place.folder)) and (not name or title.startswith(f"ray::{name}")):
                found.append(process)
    return found


def assert_nothing_was_lost(place: Workplace, planned: int, epochs: int) -> None:
    """Exactly the planned trials, each suggested once, every epoch once; every run closed, one for each trial."""
    search = search_of(place)
    every = list(range(1, epochs + 1))
    assert [trial.number for trial in search.trials.values()] == list(range(planned))
    assert all(trial.status == "finished" for trial in search.trials.values())
    assert all(list(trial.reports) == every for trial in search.trials.values())
    suggestions = Counter(tuple(trial.values.items()) for trial in search.trials.values())
    assert set(suggestions.values()) == {1}
    runs = list(runs_of(place))
    assert {status for _, status, _ in runs} == {"FINISHED"}
    trials = {tags["trial_id"]: steps for tags, _, steps in runs if "trial_id" in tags}
    assert len(runs) == planned + 1 and trials.keys() == search.trials.keys()
    assert all(sorted(steps) == every for steps in trials.values())


def assert_nothing_is_left(place: Workplace) -> None:
    """No process of a search or of its own Ray lives; on a Ray that outlives it, none of a trial's.

    The agents of a private Ray whose driver was killed look for their raylet twice a minute, then leave.
    """
    outlives = any("ray start" in title or "ray-start" in title for title in map(title_of, processes_of(place)))
    kinds = OF_A_TRIAL if outlives else ("",)
    living = lambda: [process for kind in kinds for process in processes_of(place, kind)]  # noqa: E731
    wait_for(lambda: not living(), seconds=120, told=living)


def assert_equals_the_uninterrupted(place: Workplace, number: int, rel: float = 1e-6) -> None:
    """A trial that was resumed has the numbers of one that was not, and that one worker trained."""
    search = search_of(place)
    experiment = config.load(place.folder / "experiments.yaml", "tiny", search.overrides)
    trial = list(search.trials.values())[number]
    settings = experiment.trial_config(trial.values)
    torch.set_num_threads(1)
    data = open_dataset(experiment.data)
    expected = {p.epoch: p.metrics["gap"] for p in train(settings, data, device=torch.device("cpu"), seed=1)}
    assert {epoch: report["gap"] for epoch, report in trial.reports.items()} == pytest.approx(expected, rel=rel)


def toll(place: Workplace, number: int, at: float) -> dict[str, Any]:
    """What the fault at the time `at` cost trial `number`, by its journal: the numbers of `fault_row`.

    `lost_epochs` were known and had to be trained again; `recovery_seconds` passed until the next epoch that was new.
    """
    id = list(search_of(place).trials)[number]
    mine = [record for record in records_of(place) if record.get("id") == id]
    went_on = next((record for record in mine if record["type"] == "resumed" and record["time"] > at), None)
    since = went_on["time"] if went_on else at
    known = [record["epoch"] for record in mine if record["type"] == "report" and record["time"] < since]
    again = next(record["time"] for record in mine if record["type"] == "report" and record["time"] > since)
    resumed_after = went_on["epoch"] if went_on else 0
    lost_epochs = max(0, max(known, default=0) - resumed_after)
    return {"lost_epochs": lost_epochs, "recovery_seconds": round(again - at, 1)}
