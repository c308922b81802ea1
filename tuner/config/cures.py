"""What to write instead: the end of a message about a value or a key that a person meant otherwise."""

import re
from contextlib import suppress
from typing import Any

from tuner.config.yaml_tree import Node, shown

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SPAN = re.compile(rf"(?P<low>{_NUMBER.pattern})\s*(\.\.+|-|to)\s*(?P<high>{_NUMBER.pattern})")
_ENDS = {"min", "max", "low", "high", "from", "to", "lower", "upper", "start", "end"}
_CALL = re.compile(r"(uniform|loguniform|quniform|int|logint|choice)\b\W*(.*?)\W*")


def for_number(node: Node, *, whole: bool, searchable: bool) -> str:
    """The cure for a value that is due to be a number but is none.

    Args:
        node: the value.
        whole: whether a whole number is due.
        searchable: whether a distribution may stand there.
    """
    value, uniform = node.value, "int" if whole else "uniform"
    if node.drawn is not None:  # an end of a distribution of other numbers
        kind = next(iter(node.drawn.entries))
        better = {"uniform": "int", "loguniform": "logint", "quniform": "int"}.get(kind)
        ends = [_as_whole(end) for end in node.drawn.entries[kind].plain()]
        return f"; write {shown({better: ends})}" if better else ""
    if isinstance(value, tuple) and searchable and value and all(_is_number(entry.plain()) for entry in value):
        entries = [entry.plain() for entry in value]
        choice = f"{shown({'choice': entries})} for a choice"
        return (
            f"; write {shown({uniform: entries})} for a range, {choice}" if len(entries) == 2 else f"; write {choice}"
        )
    if node.entries and node.entries.keys() <= _ENDS and searchable:
        return f"; write a range as {{{uniform}: [low, high]}}"
    if isinstance(value, float) and whole and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            return "; leave the quotes out"
        if value.endswith("%") and _NUMBER.fullmatch(value[:-1]):
            return f"; write {float(value[:-1]) / 100:g}"
        if searchable and (call := _CALL.match(value)):
            return f"; write a distribution as {{{call[1]}: [...]}}"
        if searchable and (span := _SPAN.fullmatch(value)):
            return f"; write {{{uniform}: [{span['low']}, {span['high']}]}} for a range"
    return ""


def for_block(node: Node, kinds: tuple[str, ...]) -> str:
    """The cure for a word that names the kind of a block in place of the block."""
    return f"; write {{kind: {node.value}}}" if node.value in kinds else ""


def for_key(key: str) -> str:
    """The cure for a key that is a number, or that holds the value too."""
    if _NUMBER.fullmatch(key):
        return "; write a list in brackets, as in [0.2, 0.7], and a number with a point, as in 0.5"
    name, colon, _ = key.partition(":")
    return f"; write a space after the colon, as in {name}: value" if colon else ""


def for_ends(kind: str, node: Node) -> str:
    """The cure for ends that stand beside a distribution and not in its brackets: `{uniform: 0.2, 0.7}`."""
    inside = node.entries[kind].plain()
    outside = [key for key in node.entries if _NUMBER.fullmatch(key)]
    if not outside or not _is_number(inside):
        return ""
    return f"; write {{{kind}: [{', '.join([shown(inside), *outside])}]}}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_whole(value: Any) -> Any:
    with suppress(ValueError, OverflowError, TypeError):
        return round(value)
    return value
