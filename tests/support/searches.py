"""What tests of whole searches look at: the journal, the MLflow runs, the processes, and what a fault cost."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.workplace import Workplace, wait_for
from tuner.config.experiment import load
from tuner.export.pruning import needless
from tuner.storage import journal, searches
from tuner.storage.journal import SearchHistory
from tuner.training.contrastive import encoder_store
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train

# The processes that Ray starts for a trial, by the names that Ray gives them.
OF_A_TRIAL = ("Slot", "TrainController", "RayTrainWorker")


def search_of(place: Workplace) -> SearchHistory:
    """Return the only search of the folder, replayed from its journal."""
    return journal.read(folder_of(place))


def folder_of(place: Workplace) -> Path:
    """Return the directory of the only search of the folder."""
    (directory,) = searches.folders(place.folder / "storage", "tiny")
    return directory


def entries_of(place: Workplace) -> list[dict[str, Any]]:
    """Return every entry of the journal of the only search, with its time."""
    return [json.loads(line) for line in (folder_of(place) / "journal.jsonl").read_text().splitlines()]


def runs_of(place: Workplace) -> Iterator[tuple[dict[str, str], str, list[int]]]:
    """Yield (tags, status, logged epochs) of every MLflow run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            history = client.get_metric_history(run.info.run_id, "gap")
            yield run.data.tags, run.info.status, [metric.step for metric in history]


def title_of(process: psutil.Process) -> str:
    """Return the name and command line of a process, or an empty string where it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return f"{process.name()} {' '.join(process.cmdline())}"
    return ""


def processes_of(place: Workplace, name: str = "") -> list[psutil.Process]:
    """Return the living processes whose working directory is in the folder; `name`: Ray's processes of this title."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            title = " ".join(process.cmdline())
            if title and process.cwd().startswith(str(place.folder)) and (not name or title.startswith(f"ray::{name}")):
                found.append(process)
    return found


def assert_nothing_was_lost(place: Workplace, planned: int, epochs: int) -> None:
    """Check that exactly the planned trials finished, each with its own suggestion, every epoch and a closed run."""
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
    """Check, after a search has ended, that none of its processes lives and none of its temporary files exists."""
    assert_no_process_is_left(place)
    staging = [path for path in place.folder.rglob(".*") if path.name != encoder_store.FOLDER]
    # Torch makes a cache for each user, to stay; the dashboard of a Ray that outlives the search has its sockets there.
    of_others = ("torchinductor_", "pymp-")
    temporary = [path for path in place.temporary.iterdir() if not path.name.startswith(of_others)]
    found = [*temporary, *staging, *folder_of(place).glob(searches.RAY)]
    found += [path for path in place.folder.rglob("driver.json")]
    found += needless(folder_of(place), search_of(place), 3)
    assert not found, (found, [path for folder in found for path in folder.rglob("*")])
    assert "RUNNING" not in {status for _, status, _ in runs_of(place)}


def assert_recovered(
    place: Workplace, planned: int, epochs: int, trials: Iterable[int] = (0,), rel: float = 1e-6
) -> None:
    """Check that a search has lost nothing and left nothing, and that `trials` have the numbers of undisturbed ones."""
    assert_nothing_was_lost(place, planned, epochs)
    assert_nothing_is_left(place)
    for number in trials:
        assert_equals_the_uninterrupted(place, number, rel)


def assert_no_process_is_left(place: Workplace) -> None:
    """Wait until no process of the search lives: with a private Ray none at all, else none of a trial.

    The agents of a private Ray whose driver was killed look for their raylet twice a minute before they end.
    """
    outlives = any("ray start" in title or "ray-start" in title for title in map(title_of, processes_of(place)))
    kinds = OF_A_TRIAL if outlives else ("",)
    living = lambda: [process for kind in kinds for process in processes_of(place, kind)]  # noqa: E731
    wait_for(lambda: not living(), seconds=120, describe=living)


def assert_equals_the_uninterrupted(place: Workplace, number: int, rel: float = 1e-6) -> None:
    """Check that a trial has the same GAP in every epoch as one that a single process trains without interruption."""
    search = search_of(place)
    experiment = load(place.folder / "experiments.yaml", "tiny", search.overrides)
    trial = list(search.trials.values())[number]
    settings = experiment.trial_config(trial.values)
    torch.set_num_threads(1)
    data = open_dataset(experiment.data)
    expected = {p.epoch: p.metrics["gap"] for p in train(settings, data, device=torch.device("cpu"), seed=1)}
    assert {epoch: report["gap"] for epoch, report in trial.reports.items()} == pytest.approx(expected, rel=rel)


def cost_of_fault(place: Workplace, number: int, at: float) -> dict[str, Any]:
    """Read from the journal what a fault at the time `at` cost trial `number`; returns arguments of `fault_row`.

    `lost_epochs` had been reported and had to be trained again; `recovery_seconds` passed until the next new epoch.
    """
    id = list(search_of(place).trials)[number]
    mine = [entry for entry in entries_of(place) if entry.get("id") == id]
    resumed = next((entry for entry in mine if entry["type"] == "resumed" and entry["time"] > at), None)
    since = resumed["time"] if resumed else at
    known = [entry["epoch"] for entry in mine if entry["type"] == "report" and entry["time"] < since]
    again = next(entry["time"] for entry in mine if entry["type"] == "report" and entry["time"] > since)
    resumed_after = resumed["epoch"] if resumed else 0
    lost_epochs = max(0, max(known, default=0) - resumed_after)
    return {"lost_epochs": lost_epochs, "recovery_seconds": round(again - at, 1)}
