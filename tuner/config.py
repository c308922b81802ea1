"""experiments.yaml -> Experiment: checked whole, before anything starts.

    load(file, name, overrides) -> Experiment          what `tune.py EXPERIMENT --set path=value` runs
    Experiment.trial_config(values) -> TrialConfig     what one suggestion trains
    Experiment.to_yaml() / Experiment.from_yaml()      what is stored with a search, and used when it is resumed

Ranges are checked by the dataclasses themselves; types and unknown keys by pydantic, here; the search space by both at
its corners. Every mistake becomes one line, all of them are told at once:

    experiments.yaml:4: fused_mlp.optimizer.momentun: unknown key; did you mean 'momentum'?
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from tuner.dataset import DataConfig
from tuner.errors import ConfigError
from tuner.space import DISTRIBUTIONS, Space, Values, distribution_of, options
from tuner.train import TrialConfig
from tuner.yaml_tree import Node, Problems, dump, expand, join, parse, read, shown

T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """`90s`, `30m`, `4h`, `1h30m` in seconds; anything else as it is."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", value):
        raise ValueError(f"must be a number of seconds, or a time such as 90s, 30m, 4h or 1h30m (got {shown(value)})")
    return float(sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", value)))


Seconds = Annotated[float, BeforeValidator(_seconds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """Who proposes the next trial."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["tpe", "random", "gp", "cmaes", "qmc"] = "tpe"
    seed: int = 1  # the same proposals again, with one trial at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who stops a trial early, comparing `gap` at equal epochs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["asha", "median", "none"] = "asha"
    grace: int = 1  # epochs that every trial gets
    reduction: float = 3  # asha: the best 1 in so many goes on at every rung

    def __post_init__(self) -> None:
        if self.grace < 1:
            raise ValueError(f"grace must be at least 1, but got {self.grace}")
        if not self.reduction > 1:
            raise ValueError(f"reduction must be above 1, but got {self.reduction}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauConfig:
    """Ends the search when it has stopped to improve."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    trials: int  # finished trials in a row without an improvement
    min_gain: float = 0.0  # what counts as one: more than this

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, but got {self.trials}")
        if self.min_gain < 0:
            raise ValueError(f"min_gain must not be negative, but got {self.min_gain}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresConfig:
    """How much may go wrong."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    per_trial: int = 2  # times that a trial goes on from its last checkpoint after its worker died
    per_search: int = 10  # failed trials, then the search ends

    def __post_init__(self) -> None:
        for name in ("per_trial", "per_search"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How the space is searched, and when the search ends."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    metric: Literal["gap_best", "gap", "hit_at_1", "perr", "map", "loss_validate"] = "gap_best"
    mode: Literal["max", "min"] = "max"
    trials: int = 20
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    time_budget: Seconds | None = None  # seconds, or 90s, 30m, 4h; trials that run then are ended
    max_concurrent: Literal["auto"] | int = "auto"  # trials at a time; auto: as many as the cluster holds
    overlap: bool = True  # the next trial's processes start while the last one trains
    plateau: PlateauConfig | None = None
    failures: FailuresConfig = field(default_factory=FailuresConfig)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, but got {self.trials}")
        if (self.mode == "min") != (self.metric == "loss_validate"):
            raise ValueError(f"mode must be min for loss_validate and max for the others, but got {self.mode}")
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget must be above 0 seconds, but got {self.time_budget}")
        if self.max_concurrent != "auto" and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, but got {self.max_concurrent}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesConfig:
    """What one trial holds of the cluster."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    gpu: Literal["auto"] | float = "auto"  # GPUs of a worker; auto: one where the cluster has GPUs or may start some
    cpu: Literal["auto"] | float = "auto"  # CPUs of a worker; auto: the node's CPUs over the trials on it, at least 1
    workers: int = 1  # of a trial

    def __post_init__(self) -> None:
        if self.gpu != "auto" and self.gpu < 0:
            raise ValueError(f"gpu must not be negative, but got {self.gpu}")
        if self.cpu != "auto" and not self.cpu > 0:
            raise ValueError(f"cpu must be above 0, but got {self.cpu}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, but got {self.workers}")


SEARCHABLE = {
    # The classes of each block, by kind where there are several: model: {kind: ...}.
    block.name: tuple(c for c in (get_args(hint), (hint,))[not get_args(hint)] if is_dataclass(c))
    for block, hint in ((block, get_type_hints(TrialConfig)[block.name]) for block in fields(TrialConfig))
}
FIXED: dict[str, type] = {"data": DataConfig, "search": SearchConfig, "resources": ResourcesConfig}
PIPELINES = ("supervised",)
BLOCKS = ("data", "pipeline", *SEARCHABLE, "search", "resources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One entry of experiments.yaml, complete: environment put in, defaults filled in, paths absolute."""

    name: str
    data: DataConfig
    pipeline: Literal["supervised"]
    space: Space  # the blocks model, optimizer, loss and training
    search: SearchConfig
    resources: ResourcesConfig
    file: Path  # where it was read

    def trial_config(self, values: Values) -> TrialConfig:
        """The configuration that `values` (by parameter name) stand for.

        Raises:
            ConfigError: a value is missing, out of its range or unknown, or the values do not go together.
        """
        problems = Problems(self.name)
        config = _read_trial(self.space.resolved(values), problems)
        problems.check()
        assert config is not None
        return config

    @property
    def max_epochs(self) -> int:
        """The most epochs that a trial can have: the upper end where epochs are searched."""
        return max(int(self.space.resolve(corner)["training"]["epochs"]) for corner in self.space.corners())

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
            f"{path}: {mine.get(path, 'left out')} -> {others.get(path, 'left out')}"
            for path in dict.fromkeys([*mine, *others])
            if mine.get(path) != others.get(path)
        ]

    def _blocks(self) -> dict[str, Any]:
        fixed = {name: asdict(getattr(self, name)) for name in FIXED}
        blocks = {**fixed, "pipeline": self.pipeline, **self.space.tree.plain()}
        return {name: _listed(blocks[name]) for name in BLOCKS}


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
    return _build(expand(node, problems), name, file, problems)


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
        close = difflib.get_close_matches(name, experiments.entries, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{tree.source}: there is no experiment {name!r}{hint} ({known})")
    return name, experiments.entries[name]


def _build(node: Node, name: str, file: Path, problems: Problems) -> Experiment:
    """The experiment that `node` describes; raises all that `problems` has and what is found here."""
    for key, entry in node.entries.items():
        if key not in BLOCKS:
            problems.add(entry, key, f"unknown key; {_nearest(key, BLOCKS)}")
        elif key not in SEARCHABLE:
            _refuse_distributions(entry, key, problems)
    empty = node.graft({})
    blocks = {block: node.entries.get(block, empty) for block in BLOCKS if block != "pipeline"}
    pipeline = node.entries.get("pipeline", node.graft(PIPELINES[0]))
    if pipeline.value not in PIPELINES:
        problems.add(pipeline, "pipeline", _not_one_of(pipeline.plain(), PIPELINES))
    data = _read(DataConfig, blocks["data"], "data", problems)
    search = _read(SearchConfig, blocks["search"], "search", problems)
    resources = _read(ResourcesConfig, blocks["resources"], "resources", problems)

    tree = replace(empty, value={block: blocks[block] for block in SEARCHABLE})
    space = Space.build(tree, problems)
    classes: dict[str, set[type]] = {}
    for corner in space.corners():
        resolved = space.resolved(corner)
        config = _read_trial(resolved, problems)
        if config is not None:
            _note_classes(tree, config, "", corner, classes)
            if data is not None:
                _check_towers(resolved, config, data, problems)
    problems.check()
    assert data is not None and search is not None and resources is not None
    return Experiment(
        name=name,
        data=_with_absolute_paths(data, file.parent),
        pipeline="supervised",
        space=Space.build(_with_defaults(tree, "", classes)),
        search=search,
        resources=resources,
        file=file,
    )


def _refuse_distributions(node: Node, path: str, problems: Problems) -> None:
    found = distribution_of(node)
    if found:
        blocks = ", ".join(SEARCHABLE)
        why = (
            "trials that differ here could not be compared" if path.startswith("data") else "it is of the whole search"
        )
        problems.add(node, path, f"cannot be searched: {why}; searchable are {blocks} (got {found})")
        problems.close(node)
        return
    for key, entry in node.entries.items():
        _refuse_distributions(entry, join(path, key), problems)


def _check_towers(resolved: Node, config: TrialConfig, data: DataConfig, problems: Problems) -> None:
    """The two blocks must agree on the features; found here, before the shards are read."""
    towers = getattr(config.model, "towers", None)
    if towers is None or set(towers) == set(data.features):
        return
    node = resolved.entries["model"].entries["towers"]
    asked, given = ", ".join(data.features), ", ".join(towers)
    problems.add(node, "model.towers", f"must have a tower for each of data.features: {asked} (got {given})")


def _with_absolute_paths(data: DataConfig, folder: Path) -> DataConfig:
    """Relative paths are relative to the yaml, wherever a worker runs."""

    def absolute(path: Any) -> Any:
        if isinstance(path, tuple):
            return tuple(absolute(entry) for entry in path)
        if path is None or "://" in path:
            return path
        return os.path.abspath(folder / Path(path).expanduser())

    paths = {name: absolute(getattr(data, name)) for name in ("train", "validate", "test", "vocabulary", "cache")}
    sample = data.sample and replace(data.sample, directory=absolute(data.sample.directory))
    return replace(data, **paths, sample=sample)


# Defaults: what the file leaves out is written into the tree, so that a stored search does not change with the program.


def _note_classes(node: Node, config: Any, path: str, values: Values, classes: dict[str, set[type]]) -> None:
    """Note for every block of the tree, by parameter path, which dataclass it became in this corner."""
    if distribution_of(node) == "choice":
        label = values[path]
        _note_classes(options(node)[label], config, join(path, label), values, classes)
    elif is_dataclass(config):
        classes.setdefault(path, set()).add(type(config))
        for name, entry in node.entries.items():
            _note_classes(entry, getattr(config, name), join(path, name), values, classes)


def _with_defaults(node: Node, path: str, classes: Mapping[str, set[type]]) -> Node:
    if distribution_of(node) == "choice":
        filled = [_with_defaults(option, join(path, label), classes) for label, option in options(node).items()]
        return replace(node, value={**node.entries, "choice": replace(node.entries["choice"], value=tuple(filled))})
    if not isinstance(node.value, Mapping):
        return node
    entries = {name: _with_defaults(entry, join(path, name), classes) for name, entry in node.value.items()}
    found = classes.get(path, set())
    if len(found) == 1:  # a block that is read as several classes is left as it is
        for setting in fields(next(iter(found))):
            if setting.name not in entries:
                entries[setting.name] = node.graft(_listed(_default(setting)))
    return replace(node, value=entries)


def _default(setting: Any) -> Any:
    default = setting.default if setting.default is not MISSING else setting.default_factory()
    return asdict(default) if is_dataclass(default) and not isinstance(default, type) else default


def _listed(value: Any) -> Any:
    """With lists for tuples and dicts for mappings, as yaml has them."""
    if isinstance(value, Mapping):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and not any(key in DISTRIBUTIONS for key in value):
        for key, entry in value.items():
            yield from _leaves(entry, join(path, key))
    else:
        yield path, shown(value, limit=200)


# Overrides: --set path=value


def _override(experiment: Node, text: str) -> Node:
    path, equals, written = text.partition("=")
    source = f"--set {text}"
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
            ways = ", ".join(".".join([done, label, *keys]) for label in labelled)
            raise ConfigError(f"{value.source}: {done} is a choice, so name its option; one of: {ways}")
        changed = tuple(
            _put(option, rest, value, join(done, label)) if label == key else option
            for label, option in labelled.items()
        )
        return replace(node, value={**node.entries, "choice": replace(node.entries["choice"], value=changed)})
    if node.value is not None and not isinstance(node.value, Mapping):
        raise ConfigError(f"{value.source}: {done} is a value, there is no {key!r} in it (got {shown(node.plain())})")
    below = node.entries.get(key, Node(None, source=value.source))
    entries = {**node.entries, key: _put(below, rest, value, join(done, key))}
    return replace(node, value=entries) if node.value is not None else replace(value, value=entries)


# Reading: a node becomes a dataclass, or problems.


def _read_trial(tree: Node, problems: Problems) -> TrialConfig | None:
    blocks = {}
    for name, classes in SEARCHABLE.items():
        node = tree.entries[name]
        kinds = {kind: c for c in classes for kind in get_args(get_type_hints(c).get("kind"))} if classes[1:] else {}
        kind = node.entries.get("kind")
        if kinds and isinstance(node.value, Mapping) and (kind is None or kind.value not in kinds):
            message = f"is missing; one of: {', '.join(kinds)}" if kind is None else _not_one_of(kind.plain(), kinds)
            problems.add(kind or node, join(name, "kind"), message)
            continue
        blocks[name] = _read(kinds[str(kind.value)] if kinds and kind else classes[0], node, name, problems)
    if len(blocks) < len(SEARCHABLE) or None in blocks.values():
        return None
    try:
        return TrialConfig(**blocks)
    except ValueError as error:
        found, path = _culprit(str(error), tree, "")
        problems.add(found, path, str(error))
        return None


@cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)


def _read(cls: type[T], node: Node, path: str, problems: Problems) -> T | None:
    """`node` as an instance of a dataclass; None where it is none."""
    try:
        # Through JSON: pydantic's strict mode takes lists for tuples and blocks for dataclasses only there, and strict
        # it must be, for neither true nor '3' is a number.
        return _adapter(cls).validate_json(json.dumps(node.plain()), strict=True)
    except ValidationError as error:
        mistakes = [_Mistake.of(found, cls, node) for found in error.errors(include_url=False)]
    for mistake in _without_echoes(mistakes):
        problems.add(mistake.node, join(path, ".".join(mistake.path)), mistake.message)
    return None


@dataclass(frozen=True, slots=True)
class _Mistake:
    node: Node
    path: tuple[str, ...]  # below the block
    message: str
    branch: tuple[str, ...] | None  # of the value that may be this or that: pydantic tells a mistake for each

    @classmethod
    def of(cls, found: Any, root: type, block: Node) -> "_Mistake":
        """What pydantic found, with its node; the names of a union's members are dropped from its path."""
        node, path, branch = block, [], None
        owner: type | None = root
        *parents, last = found["loc"] or ("",)
        for key in found["loc"]:
            below = node.entries.get(str(key))
            if isinstance(node.value, tuple) and isinstance(key, int):
                below = node.value[key]
            if below is None:
                branch = branch or (tuple(path) if found["type"] != "missing" or key in parents else None)
                continue
            if found["type"] != "unexpected_keyword_argument" or len(path) < len(parents):
                owner = _class_below(owner, str(key))
            node = below
            path.append(str(key))
        got = shown(node.plain())
        match found["type"]:
            case "missing":
                path.append(str(last))
                message = "is missing"
            case "unexpected_keyword_argument":
                message = f"unknown key; {_nearest(path[-1], [f.name for f in fields(owner)] if owner else [])}"
            case "value_error":
                message = found["msg"].removeprefix("Value error, ")
                node, dotted = _culprit(message, node, ".".join(path))
                path = dotted.split(".") if dotted else []
            case "literal_error":
                message = _not_one_of(node.plain(), [found["ctx"]["expected"].replace("'", "").replace(" or ", ", ")])
            case "dataclass_type":
                message = f"must be a block of settings (got {got})"
            case _:
                message = f"{found['msg'].replace('Input should be', 'must be')} (got {got})"
                message = _misspelt_distribution(node) or message
        return cls(node, tuple(path), message, branch)


def _without_echoes(mistakes: Sequence[_Mistake]) -> Iterator[_Mistake]:
    """One mistake for a value that may be this or that: of the deepest, or `must be this or must be that`."""
    branches: dict[tuple[str, ...], list[_Mistake]] = {}
    for mistake in mistakes:
        if mistake.branch is None:
            yield mistake
        else:
            branches.setdefault(mistake.branch, []).append(mistake)
    for echoes in branches.values():
        depth = max(len(echo.path) for echo in echoes)
        deepest = [echo for echo in echoes if len(echo.path) == depth]
        by_path: dict[tuple[str, ...], list[_Mistake]] = {}
        for echo in deepest:
            by_path.setdefault(echo.path, []).append(echo)
        for same in by_path.values():
            got = f" (got {shown(same[0].node.plain())})"
            wishes = dict.fromkeys(echo.message.removesuffix(got) for echo in same)
            yield replace(same[0], message=" or ".join(wishes) + (got if len(wishes) > 1 else ""))


def _culprit(message: str, node: Node, path: str) -> tuple[Node, str]:
    """The setting that a dataclass complains of, with its path: the first of its block that the message names."""
    for word in re.findall(r"[A-Za-z_][A-Za-z0-9_.]*", message):
        found, below = node, path
        for key in word.strip(".").split("."):
            if key not in found.entries:
                break
            found, below = found.entries[key], join(below, key)
        if found is not node:
            return found, below
    return node, path


def _class_below(owner: type | None, key: str) -> type | None:
    hint = get_type_hints(owner).get(key) if owner is not None else None
    return next((c for c in (hint, *get_args(hint)) if isinstance(c, type) and is_dataclass(c)), None)


def _misspelt_distribution(node: Node) -> str | None:
    for key in node.entries:
        close = difflib.get_close_matches(key, DISTRIBUTIONS, n=1)
        if close:
            return f"unknown distribution {key!r}; did you mean {close[0]!r}?"
    return None


def _not_one_of(value: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    return (
        f"{value!r} is not one of: {', '.join(known)}"
        if isinstance(value, str)
        else (f"must be one of: {', '.join(known)} (got {shown(value)})")
    )


def _nearest(key: str, known: Sequence[str]) -> str:
    """What may have been meant: a key of the same block, else a setting of that name elsewhere."""
    close = difflib.get_close_matches(key, known, n=1)
    elsewhere = [path for path in _paths() if path.rpartition(".")[2] == key]
    if not close and not elsewhere:
        last = {path.rpartition(".")[2]: path for path in reversed(_paths())}
        elsewhere = [last[name] for name in difflib.get_close_matches(key, last, n=1, cutoff=0.8)]
    if close or elsewhere:
        return f"did you mean {(close or elsewhere)[0]!r}?"
    return f"known are {', '.join(known)}"


@cache
def _paths() -> tuple[str, ...]:
    """Every setting there is, by its path."""

    def below(cls: type, path: str) -> Iterator[str]:
        for setting in fields(cls):
            yield join(path, setting.name)
            nested = _class_below(cls, setting.name)
            if nested:
                yield from below(nested, join(path, setting.name))

    blocks = {**{name: (cls,) for name, cls in FIXED.items()}, **SEARCHABLE}
    return tuple(path for name, classes in blocks.items() for cls in classes for path in (name, *below(cls, name)))
