"""experiments.yaml -> Experiment: checked whole, before anything starts.

    load(file, name, overrides) -> Experiment          what `tune.py EXPERIMENT --set path=value` runs
    Experiment.trial_config(values) -> TrialConfig     what one suggestion trains
    Experiment.to_yaml() / Experiment.from_yaml()      what is stored with a search, and used when it is resumed

Ranges are checked by the dataclasses themselves; types and unknown keys by pydantic (tuner/config/reading.py); the
search
space by both at its corners. Every mistake becomes one line, all of them are told at once:

    experiments.yaml:4: fused_mlp.optimizer.momentun: unknown key; did you mean 'momentum'?
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

import models
from data.sampling import FramesConfig
from models import FeatureStatistics
from models.losses import penalties
from tuner.config.distributions import DISTRIBUTIONS, default_label, distribution_of, label, options
from tuner.config.reading import FIXED, SEARCHABLE, blocks_of, hint_for_key, not_one_of, read_block, read_trial
from tuner.config.search import (
    ElasticConfig,
    FailuresConfig,
    PlateauConfig,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    SearchConfig,
)
from tuner.config.space import Space, Values
from tuner.config.yaml_tree import Node, Problems, dump, expand, join, parse, read, shown
from tuner.errors import ConfigError, did_you_mean
from tuner.redact import has_credentials, redacted
from tuner.training.config import ContrastiveConfig, Trial, TrialConfig, without_effect
from tuner.training.dataset import DataConfig
from tuner.training.pipelines import CONFIGS, pipeline_of

__all__ = [
    "ElasticConfig",
    "Experiment",
    "FailuresConfig",
    "PlateauConfig",
    "ResourcesConfig",
    "SamplerConfig",
    "SchedulerConfig",
    "SearchConfig",
    "load",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One entry of experiments.yaml, complete: environment put in, defaults filled in, paths absolute."""

    name: str
    data: DataConfig
    pipeline: str  # one of training.pipelines.CONFIGS
    space: Space  # the blocks that shape a trial of the pipeline
    search: SearchConfig
    resources: ResourcesConfig
    file: Path  # where it was read

    def trial_config(self, values: Values) -> Trial:
        """The configuration that `values` (by parameter name) stand for.

        Raises:
            ConfigError: a value is missing, out of its range or unknown, or the values do not go together.
        """
        problems = Problems(self.name)
        config = read_trial(self.pipeline, self.space.resolved(values), problems)
        problems.check()
        assert config is not None
        return config

    @property
    def max_epochs(self) -> int:
        """The most epochs that a trial can have: the upper end where epochs are searched."""
        return max(self.trial_config(corner).epochs for corner in self.space.corners())

    def to_yaml(self) -> str:
        """The experiment as a yaml file of its own: everything spelled out, distributions as they were written."""
        return dump({"default": self.name, "experiments": {self.name: self._blocks()}})

    @classmethod
    def from_yaml(cls, text: str, name: str, file: Path) -> "Experiment":
        """Read what `to_yaml` wrote; `file` is where the experiment came from.

        Raises:
            ConfigError: it does not fit this version of the program.
        """
        name, node = _choose(parse(text, f"the stored copy of {file}"), name)
        return _build(node, name, file, Problems(name))

    def differences(self, other: "Experiment") -> list[str]:
        """What is different in `other`, a line for each setting: `search.trials: 4 -> 8`."""
        mine, others = dict(_leaves(self._blocks())), dict(_leaves(other._blocks()))
        return [
            f"{path}: {_told(mine, path)} -> {_told(others, path)}"
            for path in dict.fromkeys([*mine, *others])
            if path not in mine or path not in others or mine[path] != others[path]  # as values: 3 is 3.0
        ]

    def _blocks(self) -> dict[str, Any]:
        fixed = {name: asdict(getattr(self, name)) for name in FIXED}
        blocks = {**fixed, "pipeline": self.pipeline, **self.space.tree.plain()}
        return {name: _listed(blocks[name]) for name in blocks_of(self.pipeline)}


def load(file: Path, name: str | None, overrides: Sequence[str] = ()) -> Experiment:
    """Read one experiment and check all of it.

    Args:
        file: experiments.yaml; relative paths in it are relative to its folder.
        name: of the experiment; None: the one that the file names as its default.
        overrides: `path=value`, the value as it would be written in the yaml: a setting, a distribution, a block.

    Raises:
        ConfigError: with a line for every mistake in the experiment.
    """
    name, node = _choose(read(file), name)
    for override in overrides:
        node = _override(node, override)
    problems = Problems(name)
    node = expand(node, problems)
    _refuse_credentials(node, "", problems)
    return _build(node, name, file, problems)


def _choose(tree: Node, name: str | None) -> tuple[str, Node]:
    """The experiment of that name, or the file's default."""
    problems = Problems()
    experiments = tree.entries.get("experiments", Node({}, tree.line, tree.source))
    if not experiments.entries:
        problems.add(experiments, "", "a file of experiments reads `experiments: {name: {...}}`")
    for key, node in tree.entries.items():
        if key not in ("default", "experiments"):
            problems.add(node, key, "unknown key; a file has the keys default and experiments")
    for key, node in experiments.entries.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", key):
            problems.add(node, f"experiments.{key}", "a name has letters, digits, and _ . - between them")
        elif not isinstance(node.value, Mapping):
            problems.add(node, f"experiments.{key}", f"must be a block of settings (got {shown(node.plain())})")
    known = f"experiments: {', '.join(experiments.entries)}"
    default = tree.entries.get("default")
    if default is not None and default.value not in experiments.entries:
        problems.add(default, "default", f"there is no experiment {shown(default.plain())} ({known})")
    problems.check()
    if name is None:
        if default is None:
            raise ConfigError(f"{tree.source}: names no default; name one of the {known}")
        name = str(default.value)
    if name not in experiments.entries:
        hint = did_you_mean(name, experiments.entries)
        raise ConfigError(f"{tree.source}: there is no experiment {name!r}{hint} ({known})")
    return name, experiments.entries[name]


def _build(node: Node, name: str, file: Path, problems: Problems) -> Experiment:
    """The experiment that `node` describes; raises all that `problems` has and what is found here."""
    first = next(iter(CONFIGS))
    chosen = node.entries.get("pipeline", node.graft(first))
    pipeline = str(chosen.value)
    if pipeline not in CONFIGS:
        problems.add(chosen, "pipeline", not_one_of(chosen.plain(), CONFIGS))
        pipeline = first
    known = blocks_of(pipeline)
    for key, entry in node.entries.items():
        if key not in known:
            problems.add(entry, key, _unknown_block(key, pipeline))
        elif key not in SEARCHABLE[pipeline]:
            _refuse_distributions(entry, key, tuple(SEARCHABLE[pipeline]), problems)
    empty = node.graft({})
    blocks = {block: node.entries.get(block, empty) for block in known if block != "pipeline"}
    # `loss:` with nothing below it, or only comments, is an empty block.
    blocks = {block: replace(entry, value={}) if entry.value is None else entry for block, entry in blocks.items()}
    data = read_block(DataConfig, blocks["data"], "data", problems)
    search = read_block(SearchConfig, blocks["search"], "search", problems)
    resources = read_block(ResourcesConfig, blocks["resources"], "resources", problems)

    tree = replace(empty, value={block: blocks[block] for block in SEARCHABLE[pipeline]})
    tree = _with_absolute_predictions(tree, file.parent)
    space = Space.build(tree, problems)
    classes: dict[str, set[type]] = {}
    trials: list[tuple[Node, Trial]] = []
    corners = space.corners()
    for corner in corners:
        resolved = space.resolved(corner)
        config = read_trial(pipeline, resolved, problems)
        if config is not None:
            _note_classes(tree, config, "", corner, classes)
            trials.append((resolved, config))
            if data is not None:
                _check_level(resolved, config, data, problems)
                _check_features(resolved, config, data, problems)
                _check_loss(resolved, config, data, problems)
            if resources is not None:
                _check_workers(blocks["resources"], config, resources.max_workers, problems)
    if len(trials) == len(corners):  # one that is wrong may be of another model
        _check_effects(trials, problems)
    problems.check()
    assert data is not None and search is not None and resources is not None
    if search.sampler.kind == "grid":
        search = _of_a_grid(search, blocks["search"], space, problems)
    return Experiment(
        name=name,
        data=_with_absolute_paths(data, file.parent),
        pipeline=pipeline,
        space=Space.build(_with_defaults(tree, "", classes)),
        search=search,
        resources=resources,
        file=file,
    )


def _unknown_block(key: str, pipeline: str) -> str:
    others = [name for name in CONFIGS if key in SEARCHABLE[name]]
    if others:
        return f"belongs to pipeline: {others[0]}, and this is {pipeline}, which has {', '.join(SEARCHABLE[pipeline])}"
    return f"unknown key{hint_for_key(key, blocks_of(pipeline), (pipeline,))}"


def _refuse_distributions(node: Node, path: str, searchable: Sequence[str], problems: Problems) -> None:
    found = distribution_of(node)
    if found:
        why = "trials on different data do not compare" if path.startswith("data") else "all trials share this"
        problems.add(node, path, f"cannot be searched, {why}; {', '.join(searchable)} can (got {found})")
        problems.close(node)
        return
    for key, entry in node.entries.items():
        _refuse_distributions(entry, join(path, key), searchable, problems)


def _refuse_credentials(node: Node, path: str, problems: Problems) -> None:
    """An experiment is stored with its searches and shown in MLflow: nothing secret may be in it."""
    if isinstance(node.value, str) and has_credentials(node.value):
        problems.add(
            node,
            path,
            f"{redacted(node.value)} holds credentials, and would be stored with the search; set them in the "
            "environment (AWS_ACCESS_KEY_ID and the like) or in fsspec's configuration",
        )
        problems.close(node)
    below = enumerate(node.value) if isinstance(node.value, tuple) else node.entries.items()
    for key, entry in below:
        _refuse_credentials(entry, join(path, str(key)), problems)


def _check_level(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """Whether the trial can take what the records hold; found here, before the shards are read."""
    if isinstance(config, ContrastiveConfig):
        if data.level != "video":
            message = f"learns from features of whole videos, but data.level is {data.level}; take supervised"
            problems.add(resolved, "pipeline", f"contrastive {message}")
    elif data.level == "video" and config.training.frames != FramesConfig():
        node = resolved.entries["training"].entries["frames"]
        problems.add(node, "training.frames", "has no effect where data.level is video")


def _check_features(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """The blocks `model` and `data` must agree on the records; found here, before the shards are read."""
    node = resolved.entries["model"]
    if config.model.level == "frame" and data.level == "video":
        message = f"{config.model.kind} takes frames; set data.level to frame or segment"
        problems.add(node.entries["kind"], "model.kind", f"{message} (got {data.level})")
    if config.model.kind == "linear" and data.level == "segment":
        message = "linear takes every class that is not rated for absent; choose another at data.level segment"
        problems.add(node.entries["kind"], "model.kind", message)
    for name, one in (("towers", "a tower"), ("clusters", "clusters"), ("groups", "groups")):
        given = getattr(config.model, name, None)
        if isinstance(given, Mapping) and set(given) != set(data.features):
            wish = f"must have {one} for each of data.features: {', '.join(data.features)}"
            problems.add(node.entries[name], f"model.{name}", f"{wish} (got {', '.join(given)})")


def _check_loss(resolved: Node, config: Trial, data: DataConfig, problems: Problems) -> None:
    """What a loss asks of the data and of the model."""
    block = "probe.loss" if isinstance(config, ContrastiveConfig) else "loss"
    trial = config.probe_trial if isinstance(config, ContrastiveConfig) else config
    node = _nearest_to(block, resolved)
    if trial.loss.kind == "weighted_hamming" and data.vocabulary is None:
        problems.add(node, block, "kind weighted_hamming needs the counts of data.vocabulary, which is not set")
    if trial.loss.layers:
        zeros, counts = torch.zeros(data.sizes.width), torch.zeros(data.num_classes, dtype=torch.int64)
        statistics = FeatureStatistics(num_videos=0, mean_D=zeros, variance_D=zeros, label_counts_C=counts)
        try:
            with torch.device("meta"):  # names without memory
                model = models.build(trial.model, data.sizes, statistics, torch.Generator("cpu"))
        except ValueError:
            return  # the model does not fit the data, which is told as its own mistake
        try:
            penalties.penalised(model, layers=trial.loss.layers)
        except ValueError as error:
            problems.add(node, block, str(error))


def _check_effects(trials: Sequence[tuple[Node, Trial]], problems: Problems) -> None:
    """Whether settings have no effect on any trial: beside other models, those of steps are theirs."""
    if not all(config.model.kind == "linear" for _, config in trials):
        return
    for resolved, config in trials:
        for path in without_effect(config):
            node = _nearest_to(path, resolved)
            problems.add(node, path, "has no effect on model.kind linear, which is fitted in closed form; leave it out")


def _nearest_to(path: str, node: Node) -> Node:
    """What stands at the path below the node; where that was left out, the block that it would stand in."""
    for key in path.split("."):
        node = node.entries.get(key, node)
    return node


def _of_a_grid(search: SearchConfig, node: Node, space: Space, problems: Problems) -> SearchConfig:
    """The same with as many trials as the grid has combinations; another number of them would not be heeded."""
    try:
        trials = len(space.grid)
    except ValueError as error:
        problems.add(node.entries["sampler"], "search.sampler", str(error))
    else:
        if "trials" in node.entries and search.trials != trials:
            message = f"a grid has as many trials as combinations, {trials}; leave it out (got {search.trials})"
            problems.add(node.entries["trials"], "search.trials", message)
    problems.check()
    return replace(search, trials=trials)


def _check_workers(node: Node, config: Trial, workers: int, problems: Problems) -> None:
    """Whether so many workers can share the trial's batches."""
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


def _with_absolute_paths(data: DataConfig, folder: Path) -> DataConfig:
    """Relative paths are relative to the yaml, wherever a worker runs."""
    names = ("train", "validate", "test", "vocabulary", "cache")
    paths = {name: _absolute(getattr(data, name), folder) for name in names}
    sample = data.sample and replace(data.sample, directory=_absolute(data.sample.directory, folder))
    return replace(data, **paths, sample=sample)


def _with_absolute_predictions(node: Node, folder: Path, key: str = "") -> Node:
    """The same of the one path in the blocks that are searched, `loss.distill.predictions`."""
    if key == "predictions" and isinstance(node.value, str):
        return node.graft(_absolute(node.value, folder))
    if isinstance(node.value, tuple):
        return replace(node, value=tuple(_with_absolute_predictions(entry, folder, key) for entry in node.value))
    if isinstance(node.value, Mapping):
        # Below `predictions` there may be a choice of files.
        keys = {name: key if key == "predictions" else name for name in node.value}
        below = {name: _with_absolute_predictions(entry, folder, keys[name]) for name, entry in node.value.items()}
        return replace(node, value=below)
    return node


def _absolute(path: Any, folder: Path) -> Any:
    if isinstance(path, tuple):
        return tuple(_absolute(entry, folder) for entry in path)
    if path is None or "://" in path:
        return path
    return os.path.abspath(folder / Path(path).expanduser())


# Defaults: what the file leaves out is written into the tree, so that a stored search does not change with the program.


def _note_classes(node: Node, config: Any, path: str, values: Values, classes: dict[str, set[type]]) -> None:
    """Note for every block of the tree, by parameter path, which dataclass it became in this corner."""
    if distribution_of(node) == "choice":
        chosen = values[path]
        _note_classes(options(node)[chosen], config, join(path, chosen), values, classes)
    elif is_dataclass(config):
        classes.setdefault(path, set()).add(type(config))
        for name, entry in node.entries.items():
            _note_classes(entry, getattr(config, name), join(path, name), values, classes)


def _with_defaults(node: Node, path: str, classes: Mapping[str, set[type]]) -> Node:
    if distribution_of(node) == "choice":
        filled = {key: _with_defaults(option, join(path, key), classes) for key, option in options(node).items()}
        # An option that is labelled by its text would change its name: such a one is left as it is.
        kept = {key: filled[key] if label(filled[key]) == label(old) else old for key, old in options(node).items()}
        return _with_options(node, kept)
    if not isinstance(node.value, Mapping):
        return node
    entries = {name: _with_defaults(entry, join(path, name), classes) for name, entry in node.value.items()}
    found = classes.get(path, set())
    if len(found) == 1:  # a block that is read as several classes is left as it is
        for setting in fields(next(iter(found))):
            if setting.name not in entries:
                entries[setting.name] = node.graft(_listed(_default(setting)))
    return replace(node, value=entries)


def _with_options(node: Node, changed: Mapping[str, Node]) -> Node:
    """A choice with its options replaced, by label; its default stays the same one."""
    choice = replace(node.entries["choice"], value=tuple(changed.values()))
    entries = {**node.entries, "choice": choice}
    if "default" in node.entries:
        with suppress(ValueError):  # a default that is no option is told when the space is built
            position = list(changed).index(default_label(node))
            entries["default"] = node.entries["default"].graft(list(options(replace(node, value=entries)))[position])
    return replace(node, value=entries)


def _default(setting: Any) -> Any:
    default = setting.default if setting.default is not MISSING else setting.default_factory()
    return asdict(default) if is_dataclass(default) and not isinstance(default, type) else default


def _listed(value: Any) -> Any:
    """With lists for tuples and dicts for mappings, as yaml has them."""
    if isinstance(value, Mapping):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and not any(key in DISTRIBUTIONS for key in value):
        for key, entry in value.items():
            yield from _leaves(entry, join(path, key))
    else:
        yield path, value


def _told(leaves: Mapping[str, Any], path: str) -> str:
    return shown(leaves[path], limit=200) if path in leaves else "left out"


# Overrides: --set path=value


def _override(experiment: Node, text: str) -> Node:
    path, equals, written = text.partition("=")
    source = f"--set {redacted(text)}"
    if not equals or not path.strip():
        raise ConfigError(f"{source}: write it as path=value, such as training.epochs=5")
    return _put(experiment, path.strip().split("."), parse(written, source, lines=False), "")


def _put(node: Node, keys: Sequence[str], value: Node, done: str) -> Node:
    """`node` with `value` at the end of `keys`; through a choice the way leads by the option's label."""
    if not keys:
        return value
    key, *rest = keys
    if distribution_of(node) == "choice" and key not in node.entries:
        labelled = options(node)
        if key not in labelled:
            raise ConfigError(
                f"{value.source}: {done} is a choice, so name its option; one of: {_ways(labelled, keys, done)}"
            )
        return _with_options(node, {**labelled, key: _put(labelled[key], rest, value, join(done, key))})
    if node.value is not None and not isinstance(node.value, Mapping):
        raise ConfigError(f"{value.source}: {done} is a value, there is no {key!r} in it (got {shown(node.plain())})")
    below = node.entries.get(key, Node(None, source=value.source))
    entries = {**node.entries, key: _put(below, rest, value, join(done, key))}
    return replace(node, value=entries) if node.value is not None else replace(value, value=entries)


def _ways(labelled: Mapping[str, Node], keys: Sequence[str], done: str) -> str:
    """The paths that may have been meant by one that passes a choice by."""
    blocks = [name for name, option in labelled.items() if option.entries and not distribution_of(option)]
    return ", ".join(".".join([done, way, *keys]) for way in blocks) or ", ".join(join(done, way) for way in labelled)
