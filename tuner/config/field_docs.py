"""What a dataclass says about its fields: type, default and meaning, for the reference of settings.

The meaning is the comment at the field: at the end of its line, or in the lines above it.
"""

import ast
import inspect
import io
import textwrap
import tokenize
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tuner.config.search import Seconds
from tuner.config.yaml_tree import shown


def can_be_plain(hint: Any) -> bool:
    """Whether a value of this type can be something else than a block or null."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(not is_dataclass(member) and member is not types.NoneType for member in members) and _is_union(hint)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass of a block, of a block or something else, or of a mapping's values."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for member in get_args(hint) if (found := dataclass_in(member)) is not None), None)


def kinds(cls: type[Any]) -> tuple[str, ...]:
    """What `kind` can be in a block of this class; none where it has no kind."""
    hint = get_type_hints(cls).get("kind")
    return get_args(hint) if get_origin(hint) is Literal else ()


def type_text(hint: Any) -> str:
    """A type in the words of a yaml file."""
    if hint == Seconds:
        return "seconds, or a time such as 90s, 30m, 4h"
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is Annotated:
        return type_text(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if _is_union(hint):
        return " or ".join(dict.fromkeys(type_text(member) for member in get_args(hint)))
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if hint in words:
        return words[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return "block"
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return f"list of {type_text(arguments[0])}s".replace("block of settings by paths", "blocks of settings by path")
    if arguments[1] is Any:
        return "block of settings by path"
    return f"block of names, each with a {type_text(arguments[1])}"


def default_text(setting: Field[Any]) -> str:
    """A field's default as in the yaml; "" where it is required, or where the default is a block."""
    if setting.default is not MISSING:
        return shown(list(setting.default) if isinstance(setting.default, tuple) else setting.default)
    if setting.default_factory is MISSING:
        return ""
    value = setting.default_factory()
    return "" if is_dataclass(value) else shown(value)


def first_paragraph(cls: type[Any]) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


@cache
def comments(cls: Any) -> Mapping[str, str]:
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
