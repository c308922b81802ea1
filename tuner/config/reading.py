"""Turns a block of the yaml into its dataclass, or into a list of mistakes with their lines.

Pydantic checks types and unknown keys; the dataclasses check ranges themselves. Pydantic's errors are reworded for a
yaml file and get the line of the value that they are about.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from models import CONFIGS as MODEL_CONFIGS
from models import LinearConfig, ModelConfig
from tuner.config import cures
from tuner.config.distributions import DISTRIBUTIONS
from tuner.config.search import ResourcesConfig, SearchConfig
from tuner.config.yaml_tree import Node, Problems, join, shown
from tuner.errors import did_you_mean, nearest
from tuner.training.config import Trial
from tuner.training.data_config import DataConfig
from tuner.training.pipelines import CONFIGS

T = TypeVar("T")

# By pipeline, the classes that each searchable block can become; where there are several, its `kind` decides.
SEARCHABLE: dict[str, dict[str, tuple[type[Any], ...]]] = {
    pipeline: {
        block.name: tuple(
            member
            for member in (MODEL_CONFIGS.values() if hint is ModelConfig else get_args(hint) or (hint,))
            if member is not NoneType
        )
        for block in fields(cls)
        for hint in [get_type_hints(cls)[block.name]]
    }
    for pipeline, cls in CONFIGS.items()
}
FIXED: dict[str, type[Any]] = {"data": DataConfig, "search": SearchConfig, "resources": ResourcesConfig}
# Pydantic's words, and the words for a yaml file.
_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a valid array": "a list",
    "a valid mapping": "a block",
    "a valid dictionary": "a block",
    "an object": "a block",
}


def blocks_of(pipeline: str) -> tuple[str, ...]:
    """The keys that an experiment of this pipeline can have."""
    return ("data", "pipeline", *SEARCHABLE[pipeline], "search", "resources")


def read_trial(pipeline: str, tree: Node, problems: Problems) -> Trial | None:
    """Build a trial's configuration from the resolved searchable blocks; None where they have mistakes."""
    blocks: dict[str, Any] = {}
    for name, classes in SEARCHABLE[pipeline].items():
        node = tree.entries[name]
        if name == "optimizer" and not node.entries and isinstance(blocks["model"], LinearConfig):
            continue  # a linear model needs no optimizer
        cls = classes[0] if len(classes) == 1 else _class_of_kind(classes, node, name, problems)
        blocks[name] = cls and read_block(cls, node, name, problems)
    if None in blocks.values():
        return None
    try:
        return CONFIGS[pipeline](**blocks)
    except ValueError as error:  # the blocks do not fit together
        node, path = _culprit(str(error), tree, "")
        problems.add(node, path, str(error))
        return None


@cache
def _by_kind(classes: tuple[type[Any], ...]) -> dict[str, type[Any]]:
    return {kind: cls for cls in classes for kind in get_args(get_type_hints(cls)["kind"])}


def _class_of_kind(classes: tuple[type[Any], ...], node: Node, name: str, problems: Problems) -> type[Any] | None:
    kinds = _by_kind(classes)
    if not isinstance(node.value, Mapping):
        problems.add(node, name, f"must be a block of settings (got {shown(node.plain())})")
        return None
    kind = node.entries.get("kind")
    if kind is None:
        problems.add(node, join(name, "kind"), f"is missing; one of: {', '.join(kinds)}")
    elif kind.value not in kinds:
        problems.add(kind, join(name, "kind"), not_one_of(kind.plain(), kinds))
    return kinds.get(str(kind.value)) if kind else None


def read_block(cls: type[T], node: Node, path: str, problems: Problems) -> T | None:
    """Build a dataclass from `node`; None where it has mistakes, which are added to `problems`."""
    # From JSON, because pydantic's strict mode takes lists for tuples and blocks for dataclasses only there. It must be
    # strict, because neither true nor '3' is a number.
    adapter: TypeAdapter[T] = _adapter(cast(Any, cls))
    try:
        return adapter.validate_json(json.dumps(node.plain()), strict=True)
    except ValidationError as error:
        mistakes = [_Mistake.of(found, cls, node) for found in error.errors(include_url=False)]
    for mistake in _without_echoes(mistakes):
        problems.add(mistake.node, ".".join((path, *mistake.path)), mistake.message)
    return None


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


@dataclass(frozen=True, slots=True)
class _Mistake:
    node: Node
    path: tuple[str, ...]  # below the block
    message: str
    union: tuple[str, ...] | None  # path of a value of several types: pydantic reports a mistake for each type

    @classmethod
    def of(cls, found: Any, root: type[Any], block: Node) -> "_Mistake":
        """One of pydantic's errors, reworded, with the node that it is about."""
        about_a_key = found["type"] in ("missing", "unexpected_keyword_argument")
        node, path, union = block, list[str](), None
        owner: type[Any] | None = root
        for key in found["loc"][: -1 if about_a_key else None]:
            below = node.below(key)
            if below is None:  # not a key of the yaml: it names the member of a union
                union = union or tuple(path)
                continue
            owner = _class_below(owner, key)
            node = below
            path.append(str(key))
        match found["type"]:
            case "missing":
                path.append(found["loc"][-1])
                message = "is missing"
            case "unexpected_keyword_argument":
                key = found["loc"][-1]
                path.append(key)
                node = node.entries[key]
                hint = cures.for_key(key) or hint_for_key(key, _names(owner), _pipelines_of(root))
                message = f"unknown key{hint}"
            case "value_error":
                message = found["msg"].removeprefix("Value error, ")
                node, dotted = _culprit(message, node, ".".join(path))
                path = dotted.split(".") if dotted else []
            case "literal_error":
                known = found["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
                message = not_one_of(node.plain(), known.split(", "))
                if union is not None:
                    message = f"must be {known} (got {shown(node.plain())})"
            case "dataclass_type":
                cure = cures.for_block(node, _kinds(owner))
                message = f"must be a block of settings (got {shown(node.plain())}){cure}"
            case _:
                wish = found["msg"].replace("Input should be", "must be")
                for theirs, ours in _WORDS.items():
                    wish = wish.replace(theirs, ours)
                cure = ""
                if "number" in wish:
                    cure = cures.for_number(node, whole="whole" in wish, searchable=root not in FIXED.values())
                if cure and node.drawn is not None:  # both ends are one mistake
                    message = f"{wish} (got {shown(node.drawn.plain())}){cure}"
                else:
                    got = f"{wish} (got {shown(node.plain())})"
                    message = f"{got}{cure}" if cure else _misspelt_distribution(node) or got
        return cls(node, tuple(path), message, union)


def _without_echoes(mistakes: Sequence[_Mistake]) -> Iterator[_Mistake]:
    """One mistake for each value of several types: the deepest one, or `must be A or B`."""
    echoes: dict[tuple[str, ...], list[_Mistake]] = {}
    for mistake in mistakes:
        if mistake.union is None:
            yield mistake
        else:
            echoes.setdefault(mistake.union, []).append(mistake)
    for same in echoes.values():
        deepest = max(same, key=lambda echo: len(echo.path))
        wishes = [echo.message for echo in same if echo.path == deepest.path]
        got = f" (got {shown(deepest.node.plain())})"
        first, *others = dict.fromkeys(wish.removesuffix(got) for wish in wishes)
        yield replace(deepest, message=" or ".join([first, *(wish.removeprefix("must be ") for wish in others)]) + got)


def _culprit(message: str, node: Node, path: str) -> tuple[Node, str]:
    """The setting that a dataclass's error is about, with its path: the first one of its block that it names."""
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
        if hint := did_you_mean(key, DISTRIBUTIONS):
            return f"unknown distribution {key!r}{hint}"
    return None


def not_one_of(value: Any, known: Iterable[str]) -> str:
    """The message about a value that is not one of the known ones."""
    known = list(known)
    if isinstance(value, str):
        return f"{value!r} is not one of: {', '.join(known)}{did_you_mean(value, known)}"
    return f"must be one of: {', '.join(known)} (got {shown(value)})"


def hint_for_key(key: str, known: Sequence[str], pipelines: tuple[str, ...]) -> str:
    """The end of a message about an unknown key: the similar key of its block, else of these pipelines."""
    if hint := did_you_mean(key, known):
        return hint
    path_of_name = {path.rpartition(".")[2]: path for path in reversed(_paths(pipelines))}
    name = key if key in path_of_name else nearest(key, path_of_name, cutoff=0.8)
    return f"; did you mean {path_of_name[name]!r}?" if name else f"; known are {', '.join(known)}"


def _kinds(cls: type | None) -> tuple[str, ...]:
    return get_args(get_type_hints(cls).get("kind")) if cls is not None else ()


def _names(cls: type | None) -> list[str]:
    return [setting.name for setting in fields(cls)] if cls is not None and is_dataclass(cls) else []


def _pipelines_of(cls: type[Any]) -> tuple[str, ...]:
    """The pipelines that have a block of this class; all pipelines where none has."""
    having = [name for name, blocks in SEARCHABLE.items() if any(cls in classes for classes in blocks.values())]
    return tuple(having or SEARCHABLE)


@cache
def _paths(pipelines: tuple[str, ...]) -> tuple[str, ...]:
    """The paths of all settings that an experiment of these pipelines can have."""

    def below(cls: type, path: str) -> Iterator[str]:
        for setting in fields(cls):
            yield join(path, setting.name)
            nested = _class_below(cls, setting.name)
            if nested:
                yield from below(nested, join(path, setting.name))

    blocks = list(FIXED.items())
    for pipeline in pipelines:
        blocks += [(name, cls) for name, classes in SEARCHABLE[pipeline].items() for cls in classes]
    return tuple(dict.fromkeys(path for name, cls in blocks for path in (name, *below(cls, name))))
