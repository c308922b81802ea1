"""The reference of all settings, made from the dataclasses that check them.

    python -m tuner.config.reference > docs/settings.md     write the page; a test compares it with the code
    python tune.py --explain PATH                           one setting or block of it (`explain`)

The type and the default come from the field, the range from the errors that the dataclass raises for values outside
it, and the meaning from the comment at the field: at the end of its line, or in the lines above it.
"""

import ast
import inspect
import io
import math
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tuner.config.reading import FIXED, SEARCHABLE
from tuner.config.search import Seconds
from tuner.config.yaml_tree import join, shown
from tuner.errors import ConfigError, did_you_mean
from tuner.training.pipelines import CONFIGS

HEAD = """\
# Settings

Every setting of experiments.yaml: its type, default, range and meaning. The command
`python -m tuner.config.reference > docs/settings.md` makes this page from the code; `python tune.py --explain PATH`
prints an entry or a block, for example `python tune.py --explain optimizer.learning_rate`.

An experiment has the blocks `data`, `pipeline`, `search` and `resources`, and the blocks of its pipeline. Only settings
of the pipeline's blocks can be distributions. A setting without a default is required.
"""
# Numbers that the dataclasses are tried with, to learn their ranges.
_TRIED = (-1, 0, 1, 2, 3, -0.5, 0.5, 1.5, 1e30, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting or a block of settings."""

    path: str  # in the yaml: model.hidden
    name: str  # with the kind of model: model.fused_mlp.hidden; as the path for all other settings
    type: str
    default: str  # as in the yaml; "" where the setting is required, or is a block
    ranges: tuple[str, ...]  # must be at least 1
    meaning: str
    pipelines: tuple[str, ...]  # that have it
    block: Any = None  # the dataclass of a block

    @property
    def text(self) -> str:
        """The meaning and the ranges as sentences, in the words of a yaml file."""
        sentences = [self.meaning, *self.ranges]
        # A sentence may begin with the kinds that it is about, which keep their spelling: "moco_v1, moco_v2: ...".
        begun = [
            text if re.match(r"[a-z0-9_]+(, [a-z0-9_]+)*:", text) else text[:1].upper() + text[1:] for text in sentences
        ]
        text = " ".join(f"{sentence.rstrip('.')}." for sentence in begun if sentence)
        for theirs, ours in (("None", "null"), ("False", "false"), ("True", "true")):
            text = re.sub(rf"\b{theirs}\b", ours, text)
        return text


@cache
def settings() -> tuple[Setting, ...]:
    """Every block and setting, each after the block that holds it."""
    every = tuple(CONFIGS)
    found = list(_block("data", "data", FIXED["data"], every))
    found.append(
        Setting(
            path="pipeline",
            name="pipeline",
            type=", ".join(CONFIGS),
            default=next(iter(CONFIGS)),
            ranges=(),
            meaning="how a trial is trained; the pipeline decides which blocks an experiment has",
            pipelines=every,
        )
    )
    for pipeline, blocks in SEARCHABLE.items():
        for path, classes in blocks.items():
            for cls in classes:
                kind = _kinds(cls)[0] if len(classes) > 1 else ""
                found += _block(path, join(path, kind) if kind else path, cls, (pipeline,))
    for path in ("search", "resources"):
        found += _block(path, path, FIXED[path], every)
    return tuple(found)


def explain(path: str) -> str:
    """The entry of a setting or a block, for a person to read.

    Args:
        path: as in the yaml, or with the kind of model: model.mixture_of_experts, model.fused_mlp.hidden.

    Raises:
        ConfigError: there is no such setting.
    """
    found = [setting for setting in settings() if path in (setting.path, setting.name)]
    if not found:  # model.dropout.x, or a kind below the block: model.netvlad.head
        known = dict.fromkeys(text for setting in settings() for text in (setting.path, setting.name))
        raise ConfigError(f"--explain {path}: there is no such setting{_similar(path, known)}")
    below = [setting for block in found if block.block for setting in _below(block)]
    entries = dict.fromkeys((setting.name, setting.type, setting.default, setting.text) for setting in [*found, *below])
    pipelines = dict.fromkeys(pipeline for setting in found for pipeline in setting.pipelines)
    lines = [f"{path}: a {'block' if found[0].block else 'setting'} of pipeline {' and '.join(pipelines)}"]
    for name, type_, default, text in entries:
        lines += ["", f"{name}  {type_}{_default_text(default, type_)}"]
        lines += textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def page() -> str:
    """The text of docs/settings.md."""
    parts = [HEAD]
    documented: dict[type[Any], str] = {}
    tops = [setting for setting in settings() if setting.path.count(".") == 0]
    shared: dict[tuple[str, type[Any] | None], list[str]] = {}
    for top in tops:
        shared.setdefault((top.name, top.block), []).extend(top.pipelines)
    for (name, block), pipelines in shared.items():
        top = next(setting for setting in tops if (setting.name, setting.block) == (name, block))
        parts.append(f"## {_title(top, pipelines)}\n\n{top.text}\n")
        if block is None:
            parts.append(_table([top]))
            continue
        documented.setdefault(block, name)
        rows = []
        for setting in _below(top):
            owner = next((path for path in _blocks_above(setting.name, documented, top)), None)
            if owner is None:
                rows.append(setting)
                if setting.block is not None and setting.block not in documented:
                    documented[setting.block] = setting.name
        parts.append(_table(rows, documented))
    return "\n".join(parts)


def _blocks_above(name: str, documented: Mapping[type[Any], str], top: Setting) -> Iterator[str]:
    """The blocks above a setting that are documented at another place."""
    for setting in _below(top):
        if setting.block is not None and name.startswith(f"{setting.name}."):
            place = documented.get(setting.block, setting.name)
            if place != setting.name:
                yield place


def _title(top: Setting, pipelines: Iterable[str]) -> str:
    names = tuple(dict.fromkeys(pipelines))
    title = top.name if top.name == top.path else f"{top.path}: {{kind: {top.name.rpartition('.')[2]}}}"
    return title if len(names) == len(CONFIGS) else f"{title} (pipeline {names[0]})"


def _table(rows: Sequence[Setting], documented: Mapping[type[Any], str] | None = None) -> str:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        text = row.text
        elsewhere = (documented or {}).get(row.block, row.name) if row.block else row.name
        if elsewhere != row.name:
            text = f"{text} Its settings are those of `{elsewhere}`."
        cells = (f"`{row.path}`", row.type, f"`{row.default}`" if row.default else "", text.strip())
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default_text(default: str, type_: str) -> str:
    if default:
        return f", default {default}"
    return "" if type_.startswith("block") else ", required"


def _similar(path: str, known: Iterable[str]) -> str:
    names = list(known)
    if hint := did_you_mean(path, names):
        return hint
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    key = path.rpartition(".")[2]
    return f"; did you mean {last[key]!r}?" if key in last else "; docs/settings.md lists all settings"


def _below(block: Setting) -> list[Setting]:
    """The settings of a block, at any depth, in the same pipelines."""
    inside = (setting for setting in settings() if setting.name.startswith(f"{block.name}."))
    return [setting for setting in inside if setting.pipelines == block.pipelines]


def _block(path: str, name: str, cls: Any, pipelines: tuple[str, ...], meaning: str = "") -> Iterator[Setting]:
    """The block itself, then its settings, and those of the blocks in it."""
    yield Setting(
        path=path,
        name=name,
        type="block",
        default="",
        ranges=(),
        meaning=meaning or _docstring(cls),
        pipelines=pipelines,
        block=cls,
    )
    hints = get_type_hints(cls, include_extras=True)
    comments = _comments(cls)
    for setting in fields(cls):
        hint, below = hints[setting.name], (join(path, setting.name), join(name, setting.name))
        nested = _dataclass_in(hint)
        comment = comments.get(setting.name, "")
        if setting.name == "kind":
            comment = comment or f"the kind of {path.rpartition('.')[2]}"
        if nested is not None and not _plain_members(hint):
            keys = "<name>" if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping) else ""
            entries = list(_block(*below, nested, pipelines, comment))
            first = replace(entries[0], type=_type(hint), default=_default(setting))
            yield first
            for entry in entries[1:]:
                inner = [text[len(base) + 1 :] for text, base in zip((entry.path, entry.name), below, strict=True)]
                yield replace(
                    entry,
                    path=".".join(filter(None, (below[0], keys, inner[0]))),
                    name=".".join(filter(None, (below[1], keys, inner[1]))),
                )
            continue
        entry = Setting(
            path=below[0],
            name=below[1],
            type=_type(hint),
            default=_default(setting),
            ranges=_ranges(cls).get(setting.name, ()),
            meaning=comment,
            pipelines=pipelines,
        )
        if nested is None:
            yield entry
        else:  # a number, or a block in its place
            yield replace(entry, block=nested)
            yield from list(_block(*below, nested, pipelines))[1:]


def _plain_members(hint: Any) -> bool:
    """Whether a value of this type can be something else than a block or null."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(not is_dataclass(member) and member is not types.NoneType for member in members) and _is_union(hint)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass of a block, of a block or something else, or of a mapping's values."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for member in get_args(hint) if (found := _dataclass_in(member)) is not None), None)


def _kinds(cls: type[Any]) -> tuple[str, ...]:
    """What `kind` can be in a block of this class; none where it has no kind."""
    hint = get_type_hints(cls).get("kind")
    return get_args(hint) if get_origin(hint) is Literal else ()


def _type(hint: Any) -> str:
    """A type in the words of a yaml file."""
    if hint == Seconds:
        return "seconds, or a time such as 90s, 30m, 4h"
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if _is_union(hint):
        return " or ".join(dict.fromkeys(_type(member) for member in get_args(hint)))
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if hint in words:
        return words[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return "block"
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return f"list of {_type(arguments[0])}s"
    return f"block of names, each with a {_type(arguments[1])}"


def _default(setting: Field[Any]) -> str:
    if setting.default is not MISSING:
        return shown(list(setting.default) if isinstance(setting.default, tuple) else setting.default)
    if setting.default_factory is MISSING:
        return ""
    value = setting.default_factory()
    return "" if is_dataclass(value) else shown(value)


def _docstring(cls: type[Any]) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


@cache
def _comments(cls: Any) -> Mapping[str, str]:
    """The comment at each field of a dataclass, fields of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(inspect.getmro(cls)):
        if "__dataclass_fields__" not in vars(base):
            continue
        text = textwrap.dedent(inspect.getsource(base))
        at_line: dict[int, tuple[str, bool]] = {}  # comment, and whether nothing else is in its line
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                alone = token.line.lstrip().startswith("#")
                at_line[token.start[0]] = (token.string.lstrip("# ").rstrip(), alone)
        (definition,) = ast.parse(text).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                comment = _comment_at(node, at_line)
                found[node.target.id] = comment or found.get(node.target.id, "")  # a new default keeps the text
    return found


def _comment_at(node: ast.stmt, at_line: Mapping[int, tuple[str, bool]]) -> str:
    above: list[str] = []
    line = node.lineno - 1
    while line in at_line and at_line[line][1]:
        above.insert(0, at_line[line][0])
        line -= 1
    within = [at_line[line][0] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in at_line]
    return " ".join([*above, *within])


@cache
def _ranges(cls: Any) -> Mapping[str, tuple[str, ...]]:
    """By field, what a dataclass says its numbers must be, learned from the errors that it raises."""
    found: dict[str, dict[str, None]] = {}
    hints = get_type_hints(cls)
    for example in [example for kind in _kinds(cls) or ("",) for example in _examples(cls, kind)]:
        for setting in fields(cls):
            for value in _values_to_try(hints[setting.name]):
                for rule in _broken_rules(example, setting.name, value):
                    found.setdefault(setting.name, {})[rule] = None
    return {name: tuple(rules) for name, rules in found.items()}


def _values_to_try(hint: Any) -> list[Any]:
    """Values of a setting of this type, of which some are outside its range where it has one."""
    members = get_args(hint) if _is_union(hint) else (hint,)
    values: list[Any] = [n for n in _TRIED if float in members or (int in members and isinstance(n, int))]
    for member in members:
        arguments = get_args(member)
        if int in arguments or float in arguments:
            numbers = _values_to_try(float if float in arguments else int)
            values += [(n,) for n in numbers] if get_origin(member) is tuple else [{"a": n, "b": 8} for n in numbers]
    return values


def _broken_rules(example: Any, name: str, value: Any) -> Iterator[str]:
    try:
        replace(example, **{name: value})
    except ValueError as error:
        rule = re.match(rf"{name}(?:\.a)? (must .+?), but got", str(error))
        if rule:
            yield rule[1]


def _examples(cls: type[Any], kind: str) -> list[Any]:
    """Instances of a dataclass: with its required fields alone, else with each of its optional numbers."""
    required: dict[str, Any] = {"kind": kind} if kind else {}
    hints = get_type_hints(cls)
    for setting in fields(cls):
        if setting.default is MISSING and setting.default_factory is MISSING and setting.name not in required:
            required[setting.name] = _example_value(hints[setting.name])
    numbers = [setting.name for setting in fields(cls) if setting.default is None]
    found = []
    for values in (required, *({**required, name: 0.5} for name in numbers)):
        try:
            found.append(cls(**values))
        except (TypeError, ValueError):  # these values do not fit together
            continue
        if values is required:
            break
    return found


def _example_value(hint: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return next(iter(_examples(hint, (_kinds(hint) or ("",))[0])), None)
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if _is_union(hint):
        return _example_value(get_args(hint)[0])
    if hint in (int, float, str):
        return {int: 1, float: 1.0, str: "x"}[hint]
    return {"a": 8, "b": 8}


if __name__ == "__main__":
    sys.stdout.write(page())
