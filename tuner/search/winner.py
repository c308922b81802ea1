"""The best trial at the end of a search: its scores are recorded, and its model is registered in MLflow."""

from collections.abc import Mapping
from typing import Any

import torch

from data.batches import Batches
from tuner.config.experiment import Experiment
from tuner.console import Console
from tuner.errors import NothingToExport
from tuner.export import checkpoints
from tuner.inference.best_trial import score_best
from tuner.storage.journal import Journal
from tuner.storage.place import Place
from tuner.tracking.records import winner_metrics, winner_tags
from tuner.tracking.registry import register_model
from tuner.tracking.tracker import Tracker
from tuner.training.dataset import Dataset

# In the search's folder: the scores of the best trial by class, one file for each split.
CLASSES = "classes-{}.csv"
CPU = torch.device("cpu")


def record_scores(journal: Journal, scored: Mapping[str, Any]) -> None:
    """Write what `tuner.inference.best_trial.score_best` has returned into the search's folder and its journal."""
    for split, table in scored["classes"].items():
        (journal.directory / CLASSES.format(split)).write_text(table, encoding="utf-8")
    journal.append("winner", id=scored["winner"], metrics=scored["scores"])


def conclude(journal: Journal, experiment: Experiment, data: Dataset, tracker: Tracker, console: Console) -> None:
    """Write the best trial and its scores to MLflow, and register its model; score it here where no slot has done so.

    Where the best trial has no readable checkpoint, the next best one takes its place.
    """
    search = journal.search
    assert search is not None
    try:
        if not search.best_is_scored:
            record_scores(journal, score_best(journal.directory, experiment, data, CPU, console.print))
        assert search.winner is not None
        best = search.trials[search.winner["trial"]]
        model = checkpoints.load_trial(journal.directory, experiment, best, CPU)
    except NothingToExport as error:
        console.print(str(error))
        return
    tables: list[Place] = list(journal.directory.glob(CLASSES.format("*")))
    tracker.log_winner(
        metrics=winner_metrics(search.winner["metrics"]),
        tags=winner_tags(best),
        tables={table.name: table.read_text(encoding="utf-8") for table in tables},
        log_model=lambda run_id, uri: register_model(
            run_id,
            uri,
            name=search.experiment,
            model=model,
            example=_example(data),
            metadata={"search": search.id, "trial": best.id, "gap": best.score},
        ),
    )


def _example(data: Dataset) -> Any:
    """Two validation videos, as the model takes them."""
    batch = next(Batches(data.validate, batch_size=2, shuffle=False).epoch(0))
    if data.validate.frame_offsets is not None:
        return tuple(tensor.numpy() for tensor in batch.inputs)
    return batch.features_BD.float().numpy()
