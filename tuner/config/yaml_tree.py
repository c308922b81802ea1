"""Yaml as a tree of nodes that know their file and line, so that a mistake that is found late still names them.

Scalars follow YAML 1.2 where YAML 1.1 is surprising: `1e-3` is a number, `no` and `on` are text, `1:30` and `010` are
not base-60 or octal numbers, and a date is text. A duplicate key is a mistake; its last value does not win.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tuner.errors import ConfigError, first_line
from tuner.redact import redacted

Scalar = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_SCALARS = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0x[0-9a-fA-F_]+|[0-9][0-9_]*)$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"^[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"
            r"|^\.(?:nan|NaN|NAN)$"
        ),
        list("-+0123456789."),
    ),
    ("merge", re.compile(r"^<<$"), ["<"]),
)
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<fallback>:-(?P<default>[^}]*))?\}")
_SHORT = 90  # a block of at most so many characters is written in one line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own way)


class _Dumper(yaml.SafeDumper):
    """Writes text that `_Loader` reads back: a string that looks like another scalar is quoted."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, flow_style or len(str(mapping)) <= _SHORT)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style or len(str(sequence)) <= _SHORT)


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the yaml with its file and line; two nodes are equal if their values are."""

    value: "Scalar | Mapping[str, Node] | tuple[Node, ...]"
    line: int = field(default=0, compare=False)  # the line of its key, or its own; 0 where there are no lines
    source: str = field(default="", compare=False)  # the file, or the `--set path=value` it comes from
    quoted: bool = field(default=False, compare=False)  # quoted text stays text when a ${variable} is expanded
    drawn: "Node | None" = field(default=None, compare=False, repr=False)  # the distribution that the value is of

    @property
    def place(self) -> str:
        """Where the value was written: `experiments.yaml:12`, or the override."""
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def entries(self) -> "Mapping[str, Node]":
        """The entries of a mapping; empty for any other value."""
        return self.value if isinstance(self.value, Mapping) else {}

    def below(self, key: str | int) -> "Node | None":
        """The entry of a mapping or a list with this key or index; None where there is none."""
        if isinstance(self.value, tuple):
            return self.value[key] if isinstance(key, int) and key < len(self.value) else None
        return self.entries.get(str(key))

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars."""
        if isinstance(self.value, Mapping):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value

    def graft(self, value: Any) -> "Node":
        """Nodes for plain dicts, lists and scalars, with this node's file and line."""
        if isinstance(value, Mapping):
            return replace(self, value={str(key): self.graft(entry) for key, entry in value.items()}, quoted=False)
        if isinstance(value, list | tuple):
            return replace(self, value=tuple(self.graft(entry) for entry in value), quoted=False)
        return replace(self, value=value, quoted=False)

    def walk(self) -> "Iterator[Node]":
        """This node and all nodes below it."""
        yield self
        below = self.value if isinstance(self.value, tuple) else self.entries.values()
        for node in below:
            yield from node.walk()


class Problems:
    """Collects mistakes, so that all of them are reported at once."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix  # the experiment's name
        self._lines: dict[tuple[str, int, str], None] = {}
        self._nodes: set[int] = set()
        self._kept: list[Node] = []  # keeps the nodes alive, so that their ids are not reused

    def add(self, node: Node, path: str, message: str) -> None:
        """Add a mistake of `node`, unless the node is closed."""
        if id(node) in self._nodes:
            return
        path = ".".join(part for part in (self._prefix, path) if part)
        text = ": ".join(part for part in (node.place, path, message) if part)
        self._lines[(node.source, node.line, text)] = None

    def close(self, node: Node) -> None:
        """Ignore further mistakes of this node and of the nodes below it."""
        self._nodes.update(id(below) for below in node.walk())
        self._kept.append(node)

    def check(self) -> None:
        """Raise the mistakes that were found, if any.

        Raises:
            ConfigError: with one line for each mistake, in the order of the file.
        """
        if self._lines:
            raise ConfigError("\n".join(text for _, _, text in sorted(self._lines, key=lambda found: found[:2])))


def read(file: Path) -> Node:
    """Read a yaml file.

    Raises:
        ConfigError: the file is missing, is not valid yaml, or has a duplicate key.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {error.start})") from error
    return parse(text, str(file))


def parse(text: str, source: str, lines: bool = True) -> Node:
    """Parse yaml.

    Args:
        text: of the yaml.
        source: names it in errors.
        lines: whether errors name the line too; False for an override.

    Raises:
        ConfigError: the text is not valid yaml, or has a duplicate key.
    """
    problems = Problems()
    nowhere = Node(None, 1 if lines else 0, source)
    try:
        root = yaml.compose(text, Loader=_Loader)
        node = nowhere if root is None else _Converter(source, lines, problems).convert(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if lines and mark else 0
        written = _line(text, mark)
        hint = "; quote the value with ${...}" if "${" in written else ""
        hint = (
            "; indent with spaces, not with tabs" if "\t" in written[: len(written) - len(written.lstrip())] else hint
        )
        place = Node(None, line, source).place
        raise ConfigError(f"{place}: is not valid yaml: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not valid yaml: {first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: is not valid yaml: its blocks and lists are nested too deeply") from error
    problems.check()
    return node


def dump(value: Any) -> str:
    """Write plain dicts, lists and scalars as yaml that `parse` reads back as the same values."""
    # In ASCII: PyYAML writes some line separators unescaped and reads them back as others.
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120))


def shown(value: Any, limit: int = 80) -> str:
    """A value in one line of at most `limit` characters, as in the yaml."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6, allow_unicode=True)
    text = redacted(text.removesuffix("...\n").strip())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def expand(node: Node, problems: Problems, environment: Mapping[str, str] = os.environ, path: str = "") -> Node:
    """Replace `${X}` and `${X:-default}` by the environment's values in every text below `node`."""
    if isinstance(node.value, Mapping):
        below = {key: expand(entry, problems, environment, join(path, key)) for key, entry in node.value.items()}
        return replace(node, value=below)
    if isinstance(node.value, tuple):
        entries = tuple(expand(entry, problems, environment, join(path, str(i))) for i, entry in enumerate(node.value))
        return replace(node, value=entries)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    unset = [m["name"] for m in _VARIABLE.finditer(node.value) if not m["fallback"] and m["name"] not in environment]
    rest = _VARIABLE.sub("", node.value)
    for name in dict.fromkeys(unset):
        problems.add(node, path, f"the environment variable {name} is not set; set it, or write ${{{name}:-a default}}")
    if "${" in rest:
        problems.add(node, path, f"write a variable as ${{NAME}} or ${{NAME:-default}} (got {shown(node.value)})")
    if unset or "${" in rest:
        problems.close(node)
        return node
    text = _VARIABLE.sub(_value_of(environment), node.value)
    return replace(node, value=text if node.quoted else _scalar(_tag(text), text))


def _value_of(environment: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    # As in a shell, `:-` also replaces a variable that is set to the empty string.
    return lambda match: environment.get(match["name"], "") or match["default"] or ""


class _Converter:
    """Converts PyYAML's nodes into `Node`s."""

    def __init__(self, source: str, lines: bool, problems: Problems) -> None:
        self._source = source
        self._lines = lines
        self._problems = problems
        self._open: set[int] = set()  # the ids of the collections around the node that is converted

    def convert(self, raw: yaml.Node, key: yaml.Node | None = None, path: str = "") -> Node:
        line = (key or raw).start_mark.line + 1 if self._lines else 0
        if isinstance(raw, yaml.ScalarNode):
            return self._convert_scalar(raw, line, path)
        if id(raw) in self._open:
            self._problems.add(Node(None, line, self._source), path, "the anchor contains itself")
            return Node(None, line, self._source)
        if raw.tag not in (_TAG + "map", _TAG + "seq"):
            self._problems.add(Node(None, line, self._source), path, f"a block or list cannot be read as {_kind(raw)}")
            return Node(None, line, self._source)
        self._open.add(id(raw))
        value: Mapping[str, Node] | tuple[Node, ...]
        if isinstance(raw, yaml.MappingNode):
            value = self._convert_mapping(raw, path)
        else:
            value = tuple(self.convert(entry, path=join(path, str(i))) for i, entry in enumerate(raw.value))
        self._open.remove(id(raw))
        return Node(value, line, self._source)

    def _convert_scalar(self, raw: yaml.ScalarNode, line: int, path: str) -> Node:
        node = Node(raw.value, line, self._source, quoted=raw.style is not None)
        try:
            return replace(node, value=_scalar(raw.tag, raw.value))
        except ValueError:
            self._problems.add(node, path, f"{raw.value!r:.80} cannot be read as {_kind(raw)}")
            return node

    def _convert_mapping(self, raw: yaml.MappingNode, path: str) -> Mapping[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, entry in raw.value:
            line = key.start_mark.line + 1 if self._lines else 0
            if not isinstance(key, yaml.ScalarNode) or not _is_scalar(key):
                self._problems.add(Node(None, line, self._source), path, "a key must be a word")
            elif key.tag == _MERGE:
                for block in entry.value if isinstance(entry, yaml.SequenceNode) else [entry]:
                    if not isinstance(block, yaml.MappingNode):
                        self._problems.add(
                            Node(None, line, self._source), path, "<< takes a block, or a list of blocks"
                        )
                    merged = dict(self.convert(block, path=path).entries) | merged
            elif key.value in own:
                first = own[key.value].line
                where = f" (first in line {first})" if first else ""
                self._problems.add(Node(None, line, self._source), join(path, key.value), f"duplicate key{where}")
            else:
                own[key.value] = self.convert(entry, key, join(path, key.value))
        return merged | own


def _scalar(tag: str, text: str) -> Scalar:
    """The value of a scalar's text.

    Raises:
        ValueError: the text does not fit the tag, or yaml has no such tag.
    """
    match tag.removeprefix(_TAG):
        case "str" | "merge":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text.replace("_", ""), 16 if "x" in text else 10)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower().replace("_", "")))
    raise ValueError(tag)


def _is_scalar(raw: yaml.ScalarNode) -> bool:
    try:
        _scalar(raw.tag, raw.value)
    except ValueError:
        return False
    return True


def _kind(raw: yaml.Node) -> str:
    return str(raw.tag).removeprefix(_TAG)


def _tag(text: str) -> str:
    """The tag of an unquoted scalar."""
    return next((_TAG + name for name, pattern, _ in _SCALARS if pattern.match(text)), _TAG + "str")


def join(path: str, key: str) -> str:
    """The path of an entry of a block."""
    return f"{path}.{key}" if path else key


def _line(text: str, mark: yaml.Mark | None) -> str:
    lines = text.splitlines()
    return lines[mark.line] if mark and mark.line < len(lines) else ""
