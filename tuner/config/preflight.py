"""What a search would trip over in its trials, looked for before one starts, by the driver and by the dry run.

Every mistake has the line of the setting that is to change, and all of them are told at once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import torch

from data import machine
from data.cache.recipe import find_shards
from data.cache.store import Cache
from data.errors import DataError, NoShardsError, ShardError
from data.schema import LABELS_KEY, SEGMENT_LABELS
from data.tfrecord import read_examples
from tuner.config.distributions import Choice
from tuner.config.experiment import Experiment
from tuner.config.space import Values
from tuner.config.yaml_tree import Problems, shown
from tuner.errors import ConfigError
from tuner.training import teacher, vocabulary
from tuner.training.config import ContrastiveConfig, Trial
from tuner.training.data_config import write_sample
from tuner.training.dataset import Dataset
from tuner.training.steps import needs
from tuner.training.teacher import rows_in

SPLITS = ("train", "validate", "test")


def check_files(experiment: Experiment) -> list[str]:
    """Check the files that the experiment names, before any shard is decoded.

    Returns:
        Sentences about shards that are in two splits, where data.overlap allows it.

    Raises:
        ConfigError: a pattern matches no file, a shard is in two splits, or the vocabulary or the teacher's predictions
            are missing, damaged or of other classes.
    """
    problems, data = Problems(experiment.name), experiment.data
    write_sample(data)
    shards: dict[str, set[str]] = {}
    for split in SPLITS:
        if (patterns := getattr(data, split)) is not None:
            try:
                shards[split] = set(find_shards(patterns))
            except NoShardsError as error:
                problems.add(experiment.node(f"data.{split}"), f"data.{split}", str(error))
    sentences = []
    for first, second in combinations(shards, 2):
        if both := shards[first] & shards[second]:
            what = f"{len(both):,} of its {len(shards[second]):,} shards are in data.{first} too (such as {min(both)})"
            sentences += _overlap(experiment, second, what, problems)
    _check_classes(experiment, problems)
    problems.check()
    return sentences


def check_data(experiment: Experiment, data: Dataset) -> list[str]:
    """Check the decoded data against what the trials at the corners of the space ask of it.

    Returns:
        Sentences about videos that are in two splits, where data.overlap allows it.

    Raises:
        ConfigError: videos are in two splits, a BatchNorm would see one video at a time, or the teacher's predictions
            lack training videos.
    """
    problems = Problems(experiment.name)
    splits = {"train": data.train, "validate": data.validate}
    tests = experiment.data.test
    if tests is not None and (test := experiment.data.built(find_shards(tests))) is not None:
        splits["test"] = test
    sentences = check_videos(experiment, splits, problems)
    for trial in _trials(experiment).values():
        for path, why in needs.batches_of_one(trial, data.sizes, data.statistics.num_videos):
            problems.add(experiment.node(path), path, why)
    for path, place in _teachers(experiment).items():
        _check(problems, experiment, place, lambda path=path: teacher.check(path, data.sizes.num_classes, data.ids))
    problems.check()
    return sentences


def check_videos(experiment: Experiment, splits: Mapping[str, Cache], problems: Problems) -> list[str]:
    """Compare the ids of the splits, each with each; as `check_data` returns and adds to `problems`."""
    sentences = []
    ids = {split: _videos(cache) for split, cache in splits.items()}
    for first, second in combinations(ids, 2):
        # A fifth of the time of np.isin: both are sorted.
        both = ids[second][rows_in(ids[first], ids[second]) >= 0]
        if len(both):
            name = both[0].decode(errors="replace")
            what = f"{len(both):,} of its {len(ids[second]):,} videos are in data.{first} too (such as {name!r})"
            sentences += _overlap(experiment, second, what, problems)
    return sentences


def check_buffer(experiment: Experiment, *, num_videos: int, video_bytes: float) -> None:
    """Check that this machine has the memory for the videos that data.cache: none shuffles.

    Args:
        experiment: what is searched.
        num_videos: of the training split.
        video_bytes: of the features of one of them, on average.

    Raises:
        ConfigError: it has not; says how many videos would fit.
    """
    data, have = experiment.data, machine.memory()
    needed = round(2 * min(data.window, num_videos) * video_bytes)
    if data.cache != "none" or needed <= have:
        return
    problems = Problems(experiment.name)
    problems.add(
        experiment.node("data.buffer"),
        "data.buffer",
        f"two groups of {data.window:,} videos, of {needs.gibibytes(round(video_bytes))} each, are kept in memory: "
        f"{needs.gibibytes(needed)}, but this machine has {needs.gibibytes(have)}; set data.buffer to "
        f"{round(have / 8 / video_bytes):,} or less",
    )
    problems.check()


def check_memory(experiment: Experiment, *, gpu: bool, num_videos: int | None = None) -> None:
    """Check that this machine has the memory that a trial needs at the least, at each corner of the space.

    Args:
        experiment: what is searched.
        gpu: whether a worker has a GPU, of whose memory this machine's first one is an example.
        num_videos: of the training split; None: not known.

    Raises:
        ConfigError: says the corner, what its trial needs and what the machine has.
    """
    if gpu and not torch.cuda.is_available():
        return
    have, where = needs.memory_of(torch.device("cuda", 0) if gpu else torch.device("cpu"))
    problems, workers = Problems(experiment.name), experiment.resources.max_workers
    worst: tuple[int, str] = (0, "")
    for corner, trial in _trials(experiment).items():
        needed = needs.least(trial, experiment.data.sizes, num_videos=num_videos, workers=workers)
        if needed > max(have, worst[0]):
            with_these = f" with {corner}" if corner else ""
            worst = (needed, f"{needs.described(trial, experiment.data.sizes, needed)}{with_these}")
    if worst[1]:
        message = f"{worst[1]}, but {where} has {needs.gibibytes(have)}; make the model or its batches smaller"
        problems.add(experiment.node("model"), "model", message)
    problems.check()


@contextmanager
def naming_settings(experiment: Experiment) -> Iterator[None]:
    """Give an error about shards the line of the setting that is to change, where a setting can cure it."""
    try:
        yield
    except NoShardsError as error:
        for split in SPLITS:
            patterns = getattr(experiment.data, split) or ()
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                if str(error).startswith(f"{pattern}:"):
                    raise ConfigError(f"{experiment.place(f'data.{split}')}: {error}") from error
        raise
    except ShardError as error:
        if error.key in (LABELS_KEY, SEGMENT_LABELS) and "outside the classes" in error.reason:
            largest = _largest_label(error.path, error.key)
            if largest < experiment.data.num_classes:  # a negative label, which is a mistake of the shard
                raise
            wish = f"the largest label of this shard is {largest:,}; set num_classes to {largest + 1:,} or more"
            raise ConfigError(f"{experiment.place('data.num_classes')}: {error}; {wish}") from error
        raise


def _largest_label(path: str, key: str) -> int:
    labels = (example.values(key) for example in read_examples(path))
    return max((int(max(found)) for found in labels if found is not None and len(found)), default=0)


def _overlap(experiment: Experiment, split: str, what: str, problems: Problems) -> list[str]:
    if experiment.data.overlap == "allow":
        return [f"data.{split}: {what}; data.overlap allows it, but scores on them say nothing about new videos"]
    cure = "give each split videos of its own, or set data.overlap to allow"
    problems.add(
        experiment.node(f"data.{split}"),
        f"data.{split}",
        f"{what}, so its scores say nothing about new videos; {cure}",
    )
    return []


def _videos(cache: Cache) -> Any:
    """The ids of the videos of a split, sorted, each once; those of segments without their start."""
    ids = np.asarray(cache.ids)
    if cache.schema.level == "segment":
        ids = np.array([one.rpartition(b":")[0] for one in ids.tolist()], np.bytes_)
    ids = np.sort(ids)  # np.unique takes ten times as long
    return ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]


def _check_classes(experiment: Experiment, problems: Problems) -> None:
    data = experiment.data
    _check(problems, experiment, "data.vocabulary", data.class_names)
    trials = [_supervised(trial) for trial in _trials(experiment).values()]
    names = data.vocabulary
    if names is not None and any(trial.loss.kind == "weighted_hamming" for trial in trials):
        _check(problems, experiment, "data.vocabulary", lambda: vocabulary.video_counts(names, data.num_classes))
    for path, place in _teachers(experiment).items():
        _check(problems, experiment, place, lambda path=path: teacher.check(path, data.num_classes))


def _check(problems: Problems, experiment: Experiment, path: str, look: Any) -> None:
    try:
        look()
    except (ConfigError, DataError) as error:
        problems.add(experiment.node(path), path, str(error))


def _teachers(experiment: Experiment) -> dict[str, str]:
    """The files of teacher predictions that trials read, with the setting that names them."""
    found = {}
    for trial in _trials(experiment).values():
        if (distill := _supervised(trial).loss.distill) is not None:
            block = "probe.loss" if isinstance(trial, ContrastiveConfig) else "loss"
            found[distill.predictions] = f"{block}.distill.predictions"
    return found


def _supervised(trial: Trial) -> Any:
    return trial.probe_trial if isinstance(trial, ContrastiveConfig) else trial


def _trials(experiment: Experiment) -> dict[str, Trial]:
    """The trials at the corners of the space, by their values in words."""
    corners = experiment.space.corners()
    return {_in_words(experiment, corner): experiment.trial_config(corner) for corner in corners}


def _in_words(experiment: Experiment, values: Values) -> str:
    labels = {one.name for one in experiment.space.parameters() if isinstance(one.distribution, Choice)}
    return ", ".join(f"{name} {value if name in labels else shown(value)}" for name, value in values.items())
