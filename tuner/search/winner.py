"""The best trial at the end of a search: scored on whole splits, and registered in MLflow."""

from typing import Any

import torch

from data.batches import Batches
from tuner.config.experiment import Experiment
from tuner.console import Console
from tuner.errors import NothingToExport
from tuner.export import checkpoints
from tuner.inference import scorecard
from tuner.storage.journal import Journal, TrialHistory
from tuner.storage.place import Place
from tuner.tracking.records import winner_metrics, winner_tags
from tuner.tracking.registry import register_model
from tuner.tracking.tracker import Tracker
from tuner.training.dataset import Dataset

# In the search's folder: the scores of the best trial by class, one file for each split.
CLASSES = "classes-{}.csv"
CPU = torch.device("cpu")


def score_winner(journal: Journal, experiment: Experiment, data: Dataset, tracker: Tracker, console: Console) -> None:
    """Score the best trial on all of validate (and test) unless the journal has its scores, and register its model.

    Where the best trial has no readable checkpoint, the next best one takes its place.
    """
    search = journal.search
    assert search is not None
    for best in search.finished:
        try:
            model = checkpoints.load_trial(journal.directory, experiment, best, CPU, console.print)
            break
        except NothingToExport as error:
            console.print(f"{error}; the next best trial is scored instead")
    else:
        return
    metrics = search.metrics_on_whole_splits(best)
    if not metrics:
        metrics = _score(model, best, journal.directory, experiment, data)
        journal.append("winner", id=best.id, metrics=metrics)
    tables: list[Place] = list(journal.directory.glob(CLASSES.format("*")))
    tracker.log_winner(
        metrics=winner_metrics(metrics),
        tags=winner_tags(best),
        tables={table.name: table.read_text() for table in tables},
        log_model=lambda run_id, uri: register_model(
            run_id,
            uri,
            name=search.experiment,
            model=model,
            example=_example(data),
            metadata={"search": search.id, "trial": best.id, "gap": best.score},
        ),
    )


def _score(
    model: Any, best: TrialHistory, directory: Place, experiment: Experiment, data: Dataset
) -> dict[str, dict[str, float]]:
    """The metrics on each split; the scores by class are written to the search's folder."""
    splits = {"validate": data.validate}
    if experiment.data.test is not None:
        splits["test"] = experiment.data.open(experiment.data.test)
    class_names = experiment.data.class_names()
    precision = experiment.trial_config(best.values).training.precision
    metrics = {}
    for name, cache in splits.items():
        metrics[name], classes = scorecard.score(model, cache, precision, CPU)
        (directory / CLASSES.format(name)).write_text(scorecard.as_csv(classes, class_names))
    return metrics


def _example(data: Dataset) -> Any:
    """Two validation videos, as the model takes them."""
    batch = next(Batches(data.validate, batch_size=2, shuffle=False).epoch(0))
    if data.validate.frame_offsets is not None:
        return tuple(tensor.numpy() for tensor in batch.inputs)
    return batch.features_BD.float().numpy()
