"""Scores the best trial of a search on whole splits, once: on a slot, or on the driver where no slot can."""

from collections.abc import Callable
from typing import Any

import torch

from tuner.config.experiment import Experiment
from tuner.errors import NothingToExport
from tuner.export import checkpoints
from tuner.inference import scorecard
from tuner.storage import journal
from tuner.storage.place import Place
from tuner.training.dataset import Dataset


def score_best(
    directory: Place, experiment: Experiment, data: Dataset, device: torch.device, print_line: Callable[[str], None]
) -> dict[str, Any]:
    """Score the best trial that has a readable checkpoint on all of validate, and of test where there is one.

    Args:
        directory: of the search, whose journal says which trial is the best.
        experiment: as the search ran it.
        data: has the validation split.
        device: where the model is scored.
        print_line: prints a sentence about each checkpoint that cannot be used.

    Returns:
        `winner`, its trial_id; `scores`, its metrics by split; `classes`, a csv of its scores by class for each split.

    Raises:
        NothingToExport: no trial has a readable checkpoint.
        DataError: the test split cannot be read.
    """
    for best in journal.read(directory).finished:
        try:
            model = checkpoints.load_trial(directory, experiment, best, device, print_line)
            break
        except NothingToExport as error:
            print_line(f"{error}; the next best trial is scored instead")
    else:
        raise NothingToExport("no finished trial has a readable checkpoint")
    splits = {"validate": data.validate}
    if experiment.data.test is not None:
        splits["test"] = experiment.data.open(experiment.data.test)
    class_names = experiment.data.class_names()
    precision = experiment.trial_config(best.values).training.precision
    scores, classes = {}, {}
    for name, cache in splits.items():
        scores[name], by_class = scorecard.score(model, cache, precision, device)
        classes[name] = scorecard.as_csv(by_class, class_names)
    return {"winner": best.id, "scores": scores, "classes": classes}
