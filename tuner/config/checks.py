"""The rules of an experiment that no single block can check: what cannot be searched, and what does not fit together.

Every check adds the mistakes that it finds to `problems`, at the line of the setting that is to change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

import models
from data.sampling import FramesConfig
from models import FeatureStatistics
from models.losses import penalties
from tuner.config.distributions import distribution_of
from tuner.config.reading import read_trial
from tuner.config.search import SearchConfig
from tuner.config.space import Space
from tuner.config.yaml_tree import Node, Problems, join
from tuner.errors import ConfigError
from tuner.redact import has_credentials, redacted
from tuner.training.config import ContrastiveConfig, Trial, TrialConfig, flatten, without_effect
from tuner.training.data_config import DataConfig
from tuner.training.pipelines import pipeline_of
from tuner.training.steps import needs


def refuse_distributions(node: Node, path: str, searchable: Sequence[str], problems: Problems) -> None:
    """Refuse a distribution in a block that trials share; `searchable` are the blocks that may have one."""
    found = distribution_of(node)
    if found:
        why = "trials on different data do not compare" if path.startswith("data") else "all trials share it"
        problems.add(node, path, f"cannot be searched, because {why}; only {', '.join(searchable)} can (got {found})")
        problems.close(node)
        return
    for key, entry in node.entries.items():
        refuse_distributions(entry, join(path, key), searchable, problems)


def refuse_credentials(node: Node, path: str, problems: Problems) -> None:
    """Refuse credentials: a search stores its experiment and shows it in MLflow, so nothing secret may be in it."""
    if isinstance(node.value, str) and has_credentials(node.value):
        problems.add(
            node,
            path,
            f"{redacted(node.value)} holds credentials, which every search would store; set them in the environment "
            "(such as AWS_ACCESS_KEY_ID) or in fsspec's configuration",
        )
        problems.close(node)
    below = enumerate(node.value) if isinstance(node.value, tuple) else node.entries.items()
    for key, entry in below:
        refuse_credentials(entry, join(path, str(key)), problems)


def check_level(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """Check that the trial's pipeline and its frames fit data.level, before any shard is read."""
    if isinstance(config, ContrastiveConfig):
        if data.level != "video":
            message = f"learns from features of whole videos, but data.level is {data.level}; use pipeline supervised"
            problems.add(resolved, "pipeline", f"contrastive {message}")
    elif data.level == "video" and config.training.frames != FramesConfig():
        node = resolved.entries["training"].entries["frames"]
        problems.add(node, "training.frames", "has no effect where data.level is video")


def check_features(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """Check that the model fits data.level and data.features, before any shard is read."""
    node = resolved.entries["model"]
    if config.model.level == "frame" and data.level == "video":
        message = f"{config.model.kind} needs frames; set data.level to frame or segment"
        problems.add(node.entries["kind"], "model.kind", f"{message} (got {data.level})")
    if config.model.kind == "linear" and data.level == "segment":
        message = "linear counts every unrated class as absent; use another model where data.level is segment"
        problems.add(node.entries["kind"], "model.kind", message)
    for name, one in (("towers", "a tower"), ("clusters", "clusters"), ("groups", "groups")):
        given = getattr(config.model, name, None)
        if isinstance(given, Mapping) and set(given) != set(data.features):
            wish = f"must have {one} for each of data.features: {', '.join(data.features)}"
            problems.add(node.entries[name], f"model.{name}", f"{wish} (got {', '.join(given)})")


def check_loss(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """Check that the data and the model have what the loss needs."""
    block = "probe.loss" if isinstance(config, ContrastiveConfig) else "loss"
    trial = config.probe_trial if isinstance(config, ContrastiveConfig) else config
    node = nearest_to(block, resolved)
    if trial.loss.kind == "weighted_hamming" and data.vocabulary is None:
        problems.add(node, block, "kind weighted_hamming needs the counts of data.vocabulary, which is not set")
    if trial.loss.layers:
        statistics = FeatureStatistics.empty(data.sizes)
        try:
            with torch.device("meta"):  # names without memory
                model = models.build(trial.model, data.sizes, statistics, torch.Generator("cpu"))
        except ValueError:
            return  # the model does not fit the data, which is reported as a mistake of its own
        try:
            penalties.penalised(model, layers=trial.loss.layers)
        except ValueError as error:
            problems.add(node, block, str(error))


def check_batches(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """Check that a model with BatchNorm sees several videos at a time."""
    try:
        for path, why in needs.batches_of_one(config, data.sizes):
            problems.add(nearest_to(path, resolved), path, why)
    except ValueError:
        return  # the model does not fit the data, which is reported as a mistake of its own


def check_effects(trials: Sequence[tuple[Node, Trial]], problems: Problems) -> None:
    """Refuse settings that have no effect on any trial: those of steps, where every model is fitted in closed form."""
    if not all(config.model.kind == "linear" for _, config in trials):
        return
    for resolved, config in trials:
        for path in without_effect(config):
            node = nearest_to(path, resolved)
            problems.add(node, path, "has no effect on model.kind linear, which is fitted in closed form; leave it out")


def nearest_to(path: str, node: Node) -> Node:
    """The node at a path below `node`; where it is left out, the innermost block around it."""
    for key in path.split("."):
        node = node.entries.get(key, node)
    return node


def check_first(search: SearchConfig, node: Node, space: Space, pipeline: str, problems: Problems) -> None:
    """Check that the configurations of `search.first` are some of the space, and that their settings fit together."""
    if not search.first:
        return
    written = node.entries["first"]
    if search.sampler.kind == "grid":
        problems.add(written, "search.first", "has no effect with the grid sampler, which tries every combination")
        return
    assert isinstance(written.value, tuple)
    for position, (given, entry) in enumerate(zip(search.first, written.value, strict=True)):
        try:
            values = space.complete(flatten(given))
        except ConfigError as error:
            problems.add(entry, f"search.first.{position}", str(error))
        else:
            read_trial(pipeline, space.resolved(values), problems)


def with_grid_trials(search: SearchConfig, node: Node, space: Space, problems: Problems) -> SearchConfig:
    """`search` with as many trials as the grid has combinations; refuses another number in the file."""
    try:
        trials = len(space.grid)
    except ValueError as error:
        problems.add(node.entries["sampler"], "search.sampler", str(error))
    else:
        if "trials" in node.entries and search.trials != trials:
            message = f"the grid has {trials} combinations, a trial for each; leave trials out (got {search.trials})"
            problems.add(node.entries["trials"], "search.trials", message)
    problems.check()
    return replace(search, trials=trials)


def check_cache(node: Node, data: DataConfig, workers: int, problems: Problems) -> None:
    """Check that there are workers to share the videos, where data.cache says that they do."""
    if data.cache == "share" and workers == 1:
        message = "share needs several workers for a trial; set resources.workers, or cache to node or none"
        problems.add(node.entries["cache"], "data.cache", message)


def check_workers(node: Node, config: Trial, workers: int, problems: Problems) -> None:
    """Check that so many workers can share the trial's batches."""
    if workers == 1:
        return
    node = node.entries["workers"]
    pipeline = pipeline_of(config)
    if not pipeline.several_workers:
        message = f"{pipeline.chosen_by} trains on one worker; set resources.workers to 1 (got {workers})"
        problems.add(node, "resources.workers", message)
    elif isinstance(config, TrialConfig) and config.training.batch_size < workers * config.training.accumulate:
        parts = f" in each of {config.training.accumulate} parts" if config.training.accumulate > 1 else ""
        message = f"training.batch_size {config.training.batch_size} has no video for each of {workers} workers{parts}"
        problems.add(node, "resources.workers", message)
