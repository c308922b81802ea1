"""Settings that are valid but make each other useless: sentences for the dry run and for the start of a search."""

from collections.abc import Iterator

from tuner.config.experiment import Experiment
from tuner.training.config import TrialConfig
from tuner.training.data_config import CACHE_MODES


def notes(experiment: Experiment, num_videos: int | None = None, largest_label: int | None = None) -> list[str]:
    """What of an experiment has no use together.

    Args:
        experiment: every corner of its space is a valid trial.
        num_videos: to learn from; None: not known yet.
        largest_label: of the training videos that were read; None: not known yet.
    """
    found = dict.fromkeys(_of_search(experiment))
    for corner in experiment.space.corners():
        trial = experiment.trial_config(corner)
        if isinstance(trial, TrialConfig):
            found |= dict.fromkeys(_of_trial(experiment, trial, num_videos))
    classes = experiment.data.num_classes
    # The rarest classes are the last, and a part of the data may lack some of them.
    if largest_label is not None and classes - largest_label > 1 + max(10, classes // 20):
        found[
            f"{experiment.place('data.num_classes')}: {classes:,} classes, but the largest label that was read is "
            f"{largest_label:,}; the classes above it have no video to learn from"
        ] = None
    return list(found)


def _of_search(experiment: Experiment) -> Iterator[str]:
    search, epochs = experiment.search, experiment.max_epochs
    cache = experiment.node("data").entries.get("cache")
    if cache is not None and cache.value not in (None, *CACHE_MODES):
        yield (
            f"{experiment.place('data.cache')}: is taken for data.cache_folder, as in earlier versions; rename it, as "
            "data.cache now says what is kept there"
        )
    if search.scheduler.kind != "none" and search.scheduler.grace >= epochs and epochs > 1:
        yield (
            f"{experiment.place('search.scheduler.grace')}: {search.scheduler.kind} stops no trial, as a trial has "
            f"{epochs} epochs and grace is {search.scheduler.grace}; lower it, or set search.scheduler.kind to none"
        )
    if search.plateau is not None and search.plateau.trials >= search.trials:
        yield (
            f"{experiment.place('search.plateau.trials')}: no plateau ends the search, as it has {search.trials} "
            f"trials and plateau.trials is {search.plateau.trials}"
        )
    if search.max_concurrent != "auto" and search.max_concurrent > search.trials:
        yield (
            f"{experiment.place('search.max_concurrent')}: at most {search.trials} trials can run at a time, as the "
            f"search has no more (got {search.max_concurrent})"
        )


def _of_trial(experiment: Experiment, trial: TrialConfig, num_videos: int | None) -> Iterator[str]:
    training, data = trial.training, experiment.data
    frames = training.frames
    if data.level != "video" and frames.sampling in ("uniform", "sequence") and frames.count >= data.max_frames:
        yield (
            f"{experiment.place('training.frames.count')}: {frames.sampling} takes all frames, as data.max_frames is "
            f"{data.max_frames} (got {frames.count})"
        )
    if num_videos is None or trial.optimizer is None:
        return
    if training.batch_size > num_videos:
        yield (
            f"{experiment.place('training.batch_size')}: an epoch is a single step, as there are {num_videos:,} videos "
            f"to learn from (got {training.batch_size:,})"
        )
    schedule, seen = trial.optimizer.schedule, num_videos * training.epochs
    if schedule.kind == "staircase" and schedule.decay_examples >= seen:
        yield (
            f"{experiment.place('optimizer.schedule.decay_examples')}: the learning rate never falls, as a trial sees "
            f"{seen:,} videos (got {schedule.decay_examples:,})"
        )
