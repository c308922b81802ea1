"""experiments.yaml -> Experiment: everything is checked before anything starts.

    load(file, name, overrides) -> Experiment          what `tune.py EXPERIMENT --set path=value` runs
    Experiment.trial_config(values) -> TrialConfig     the configuration of one suggestion
    Experiment.to_yaml() / Experiment.from_yaml()      the copy that a search stores and reads when it is resumed

The dataclasses check ranges themselves; pydantic checks types and unknown keys (tuner/config/reading.py); both check
the search space at its corners, and tuner/config/checks.py checks what no single block can. Every mistake becomes one
line, and all lines are shown at once:

    experiments.yaml:4: fused_mlp.optimizer.momentun: unknown key; did you mean 'momentum'?
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tuner.config.checks import (
    check_batches,
    check_cache,
    check_effects,
    check_features,
    check_first,
    check_level,
    check_loss,
    check_workers,
    nearest_to,
    refuse_credentials,
    refuse_distributions,
    with_grid_trials,
)
from tuner.config.completion import (
    as_lists,
    note_classes,
    with_absolute_paths,
    with_absolute_predictions,
    with_defaults,
)
from tuner.config.distributions import DISTRIBUTIONS
from tuner.config.overrides import override_setting
from tuner.config.reading import FIXED, SEARCHABLE, blocks_of, hint_for_key, not_one_of, read_block, read_trial
from tuner.config.search import ResourcesConfig, SearchConfig
from tuner.config.space import Space, Values
from tuner.config.yaml_tree import Node, Problems, dump, expand, parse, read, shown
from tuner.errors import ConfigError, did_you_mean
from tuner.storage.place import Place
from tuner.training.config import Trial, differences, flatten
from tuner.training.data_config import CACHE_MODES, DataConfig
from tuner.training.pipelines import CONFIGS

STORED = "experiment.yaml"  # in the folder of a search: its copy of the experiment
# Settings of earlier versions, as (block, key), with the values that have no effect any more; None: any value.
RETIRED = {("search", "overlap"): None, ("search", "metric"): "gap_best", ("search", "mode"): "max"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One entry of experiments.yaml, complete: variables expanded, defaults filled in, paths absolute."""

    name: str
    data: DataConfig
    pipeline: str  # one of training.pipelines.CONFIGS
    space: Space  # the blocks that a search may vary
    search: SearchConfig
    resources: ResourcesConfig
    file: Path  # the file that it was read from
    written: Node = field(default_factory=lambda: Node({}), compare=False, repr=False)  # as it is in the file

    def node(self, path: str) -> Node:
        """What the file has at a path such as data.train; where it is left out, the innermost block around it."""
        return nearest_to(path, self.written)

    def place(self, path: str) -> str:
        """A setting as the beginning of a sentence about it: `experiments.yaml:5: tiny.data.train`."""
        return ": ".join(part for part in (self.node(path).place, f"{self.name}.{path}") if part)

    def trial_config(self, values: Values) -> Trial:
        """The configuration of the trial with these values, by parameter name.

        Raises:
            ConfigError: a value is missing, out of its range or unknown, or the values do not fit together.
        """
        problems = Problems(self.name)
        config = read_trial(self.pipeline, self.space.resolved(values), problems)
        problems.check()
        assert config is not None
        return config

    @property
    def planned(self) -> list[dict[str, Any]]:
        """The values of the first trials, which no sampler draws: the defaults and `search.first`, or a whole grid."""
        if self.search.sampler.kind == "grid":
            return self.space.grid
        return [self.space.defaults(), *(self.space.complete(flatten(given)) for given in self.search.first)]

    @property
    def max_epochs(self) -> int:
        """The most epochs that a trial can have: the upper end of the range where epochs are searched."""
        return max(self.trial_config(corner).epochs for corner in self.space.corners())

    def to_yaml(self) -> str:
        """The experiment as the text of a yaml file, with all defaults, and distributions as they were written."""
        return dump({"default": self.name, "experiments": {self.name: self._blocks()}})

    @classmethod
    def from_yaml(cls, text: str, name: str, file: Path) -> "Experiment":
        """Read what `to_yaml` wrote; `file` is the file that the experiment was first read from.

        Raises:
            ConfigError: the text is no valid experiment for this version of the program.
        """
        name, node = _choose(parse(text, f"the stored copy of {file}"), name)
        return _build(node, name, file, Problems(name))

    @classmethod
    def stored(cls, directory: Place, name: str, file: Path | None = None) -> "Experiment":
        """Read the copy that a search stored in its folder.

        Args:
            directory: of the search.
            name: of the experiment.
            file: that the experiment was first read from; None: not known.

        Raises:
            ConfigError: it is no valid experiment for this version of the program.
        """
        copy = directory / STORED
        return cls.from_yaml(copy.read_text(encoding="utf-8"), name, file or Path(str(copy)))

    def differences(self, other: "Experiment") -> list[str]:
        """What is different in `other`, a line for each setting: `search.trials: 4 -> 8`."""

        def is_distribution(value: Mapping[str, Any]) -> bool:
            return any(key in DISTRIBUTIONS for key in value)

        return differences(self._blocks(), other._blocks(), show=_shown, is_value=is_distribution)

    def _blocks(self) -> dict[str, Any]:
        fixed = {name: asdict(getattr(self, name)) for name in FIXED}
        blocks = {**fixed, "pipeline": self.pipeline, **self.space.tree.plain()}
        return {name: as_lists(blocks[name]) for name in blocks_of(self.pipeline)}


def load(file: Path, name: str | None, overrides: Sequence[str] = ()) -> Experiment:
    """Read one experiment and check all of it.

    Args:
        file: experiments.yaml; relative paths in it are relative to its folder.
        name: of the experiment; None: the file's default.
        overrides: `path=value`, with the value as in the yaml: a setting, a distribution or a block.

    Raises:
        ConfigError: with one line for each mistake in the experiment.
    """
    name, node = _choose(read(file), name)
    for override in overrides:
        node = override_setting(node, override)
    problems = Problems(name)
    node = expand(node, problems)
    refuse_credentials(node, "", problems)
    return _build(node, name, file, problems)


def _choose(tree: Node, name: str | None) -> tuple[str, Node]:
    """The name and the node of the experiment that `name` names, or of the file's default."""
    problems = Problems()
    experiments = tree.entries.get("experiments", Node({}, tree.line, tree.source))
    keys = ("default", "experiments")
    for key, node in tree.entries.items():
        if key not in keys:
            hint = did_you_mean(key, keys)
            problems.add(node, key, f"unknown key; a file has the keys default and experiments{hint}")
    problems.check()
    if not experiments.entries:
        problems.add(experiments, "", "the file has no experiments; write them as `experiments: {name: {...}}`")
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
            raise ConfigError(f"{tree.source}: names no default experiment; name one ({known})")
        name = str(default.value)
    if name not in experiments.entries:
        hint = did_you_mean(name, experiments.entries)
        raise ConfigError(f"{tree.source}: there is no experiment {name!r}{hint} ({known})")
    return name, _without_retired(experiments.entries[name])


def _without_retired(experiment: Node) -> Node:
    """Leave out settings of earlier versions that have no effect any more: their files, and searches, can be used."""
    for (block, key), value in RETIRED.items():
        entry = experiment.entries.get(block)
        if entry is not None and key in entry.entries and value in (None, entry.entries[key].value):
            kept = {name: node for name, node in entry.entries.items() if name != key}
            experiment = replace(experiment, value={**experiment.entries, block: replace(entry, value=kept)})
    return experiment


def _with_cache_folder(experiment: Node, problems: Problems) -> Node:
    """Take data.cache for data.cache_folder where it is a folder or null, as in earlier versions; tell of a slip."""
    data = experiment.entries.get("data")
    cache = data.entries.get("cache") if data is not None else None
    if data is None or cache is None or cache.value in CACHE_MODES:
        return experiment
    is_folder = isinstance(cache.value, str) and not did_you_mean(cache.value, CACHE_MODES)
    if not is_folder and cache.value is not None:
        message = f"{not_one_of(cache.plain(), CACHE_MODES)}; a folder is named by data.cache_folder"
        problems.add(cache, "data.cache", message)
        problems.close(cache)
        return experiment
    kept = {"cache_folder" if key == "cache" else key: node for key, node in data.entries.items()}
    return replace(experiment, value={**experiment.entries, "data": replace(data, value=kept)})


def _build(node: Node, name: str, file: Path, problems: Problems) -> Experiment:
    """Build the experiment that `node` describes.

    Raises:
        ConfigError: with a line for each mistake in `problems` and for each that is found here.
    """
    written, node = node, _with_cache_folder(node, problems)
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
            refuse_distributions(entry, key, tuple(SEARCHABLE[pipeline]), problems)
    empty = node.graft({})
    blocks = {block: node.entries.get(block, empty) for block in known if block != "pipeline"}
    # `loss:` with nothing below it, or only comments, counts as an empty block.
    blocks = {block: replace(entry, value={}) if entry.value is None else entry for block, entry in blocks.items()}
    data = read_block(DataConfig, blocks["data"], "data", problems)
    search = read_block(SearchConfig, blocks["search"], "search", problems)
    resources = read_block(ResourcesConfig, blocks["resources"], "resources", problems)

    tree = replace(empty, value={block: blocks[block] for block in SEARCHABLE[pipeline]})
    tree = with_absolute_predictions(tree, file.parent)
    space = Space.build(tree, problems)
    classes: dict[str, set[type]] = {}
    trials: list[tuple[Node, Trial]] = []
    corners = space.corners()
    for corner in corners:
        resolved = space.resolved(corner)
        config = read_trial(pipeline, resolved, problems)
        if config is not None:
            note_classes(tree, config, "", corner, classes)
            trials.append((resolved, config))
            if data is not None:
                check_level(resolved, config, data, problems)
                check_features(resolved, config, data, problems)
                check_loss(resolved, config, data, problems)
                check_batches(resolved, config, data, problems)
            if resources is not None:
                check_workers(blocks["resources"], config, resources.max_workers, problems)
    if data is not None and resources is not None:
        check_cache(blocks["data"], data, resources.max_workers, problems)
    if len(trials) == len(corners):  # a corner with a mistake may have another model
        check_effects(trials, problems)
    problems.check()
    assert data is not None and search is not None and resources is not None
    check_first(search, blocks["search"], space, pipeline, problems)
    problems.check()
    if search.sampler.kind == "grid":
        search = with_grid_trials(search, blocks["search"], space, problems)
    return Experiment(
        name=name,
        data=with_absolute_paths(data, file.parent),
        pipeline=pipeline,
        space=Space.build(with_defaults(tree, "", classes)),
        search=search,
        resources=resources,
        file=file,
        written=written,
    )


def _unknown_block(key: str, pipeline: str) -> str:
    others = [name for name in CONFIGS if key in SEARCHABLE[name]]
    if others:
        return f"is a block of pipeline {others[0]}; pipeline {pipeline} has {', '.join(SEARCHABLE[pipeline])}"
    return f"unknown key{hint_for_key(key, blocks_of(pipeline), (pipeline,))}"


def _shown(value: Any) -> str:
    return shown(value, limit=200)
