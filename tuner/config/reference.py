"""The reference of all settings, made from the dataclasses that check them.

    python -m tuner.config.reference > docs/settings.md     write the page; a test compares it with the code
    python tune.py --explain PATH                           one setting or block of it (`explain`)

tuner/config/field_docs.py reads types, defaults and meanings, data/ranges.py the ranges.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, get_origin, get_type_hints

from data.ranges import Range, ranges_of
from tuner.config.field_docs import (
    can_be_plain,
    comments,
    dataclass_in,
    default_text,
    first_paragraph,
    kinds,
    type_text,
)
from tuner.config.reading import FIXED, SEARCHABLE
from tuner.config.yaml_tree import join
from tuner.errors import ConfigError, did_you_mean
from tuner.training.pipelines import CONFIGS

HEAD = """\
# Settings

Every setting of experiments.yaml: its type, default, range and meaning. The command
`python -m tuner.config.reference > docs/settings.md` makes this page from the code; `python tune.py --explain PATH`
prints an entry or a block, for example `python tune.py --explain optimizer.learning_rate`.

An experiment has the blocks `data`, `pipeline`, `search` and `resources`, and the blocks of its pipeline. Only settings
of the pipeline's blocks can be distributions. A setting without a default is required.

A meaning that begins with kinds, such as `moco_v1, moco_v2:`, is that of a setting which has an effect with these kinds
only. A feature is a named vector of the data, such as rgb or audio. Three sources are named below. google/youtube-8m is
the starter code of the data set. WILLOW is the model that won the YouTube-8M challenge of 2017 (Miech, Laptev and
Sivic, "Learnable pooling with context gating for video classification"). lidalei/youtube-8m is the source of the fused
MLP.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting or a block of settings."""

    path: str  # in the yaml: model.hidden
    name: str  # with the kind of model: model.fused_mlp.hidden; as the path for all other settings
    type: str
    default: str  # as in the yaml; "" where the setting is required, or is a block
    range: Range | None  # of its numbers
    meaning: str
    pipelines: tuple[str, ...]  # that have it
    block: Any = None  # the dataclass of a block

    @property
    def text(self) -> str:
        """The meaning and the range as sentences, in the words of a yaml file."""
        sentences = [self.meaning, f"must be {self.range}" if self.range else ""]
        # A sentence may begin with the kinds that it is about, which keep their spelling: "moco_v1, moco_v2: ...".
        kind_first = re.compile(r"[a-z0-9]+_|[a-z0-9_]+(, [a-z0-9_]+)*:")
        begun = [one if kind_first.match(one) else one[:1].upper() + one[1:] for one in sentences]
        text = " ".join(f"{one.rstrip('.')}." for one in begun if one)
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
            range=None,
            meaning="how a trial is trained; the pipeline decides which blocks an experiment has",
            pipelines=every,
        )
    )
    for pipeline, blocks in SEARCHABLE.items():
        for path, classes in blocks.items():
            for cls in classes:
                kind = kinds(cls)[0] if len(classes) > 1 else ""
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
        range=None,
        meaning=meaning or first_paragraph(cls),
        pipelines=pipelines,
        block=cls,
    )
    hints = get_type_hints(cls, include_extras=True)
    comment_of = comments(cls)
    for setting in fields(cls):
        hint, below = hints[setting.name], (join(path, setting.name), join(name, setting.name))
        nested = dataclass_in(hint)
        comment = comment_of.get(setting.name, "")
        if setting.name == "kind":
            comment = comment or f"the kind of {path.rpartition('.')[2]}"
        if nested is not None and not can_be_plain(hint):
            keys = "<name>" if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping) else ""
            entries = list(_block(*below, nested, pipelines, comment))
            first = replace(entries[0], type=type_text(hint), default=default_text(setting))
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
            type=type_text(hint),
            default=default_text(setting),
            range=ranges_of(cls).get(setting.name),
            meaning=comment,
            pipelines=pipelines,
        )
        if nested is None:
            yield entry
        else:  # a number, or a block in its place
            yield replace(entry, block=nested)
            yield from list(_block(*below, nested, pipelines))[1:]


if __name__ == "__main__":
    sys.stdout.write(page())
