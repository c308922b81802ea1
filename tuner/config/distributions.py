"""Distributions as they are written in the yaml.

    {uniform: [0.2, 0.7]}  {loguniform: [1e-4, 1e-2]}  {quniform: [low, high, step]}       a number of the range
    {int: [5, 20]}  {int: [low, high, step]}  {logint: [64, 4096]}                          a whole number of the range
    {choice: [0, 0.5, {loguniform: [1e-3, 10]}, {kind: adam, learning_rate: {...}}]}        an option, by its label

Each can have a `default` beside it. The label of an option is the `kind` of its block, the name of its distribution, or
its own text; `_2` and so on make labels unique. `parse` turns a tree of yaml nodes into blocks, values and parameters.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tuner.config import cures
from tuner.config.yaml_tree import Node, Problems, join, shown
from tuner.errors import ConfigError

DISTRIBUTIONS = ("uniform", "loguniform", "quniform", "int", "logint", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A range of numbers, both ends included."""

    low: float
    high: float
    log: bool = False  # uniform in the logarithm
    step: float | None = None  # distance between neighbouring values; None: 1 for whole numbers, else every value
    integer: bool = False
    default: float | None = None  # value of trial 0; None: the middle, on a log scale the geometric mean

    def __post_init__(self) -> None:
        ends = f"but got [{shown(self.low)}, {shown(self.high)}]"
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"both ends must be finite, {ends}")
        if not self.low < self.high:
            raise ValueError(f"the low end must be below the high end, {ends}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log scale must start above 0, {ends}")
        if self.step is not None:
            if not (math.isfinite(self.step) and self.step > 0):
                raise ValueError(f"the step must be above 0, but got {shown(self.step)}")
            # In decimal, as the numbers were written: in binary, 0.3 / 0.1 has a remainder.
            if (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(self.step)):
                raise ValueError(f"the range must be a multiple of the step {shown(self.step)}, {ends}")
        if self.default is None:
            object.__setattr__(self, "default", self._middle())
        elif not self.holds(self.default):
            raise ValueError(f"the default must lie in the range, but got {shown(self.default)}")

    def holds(self, value: Any) -> bool:
        """Whether `value` can be drawn."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        step = 1 if self.integer and self.step is None else self.step
        return step is None or abs((value - self.low) / step - round((value - self.low) / step)) < 1e-6

    @property
    def num_values(self) -> int | None:
        """How many values it has; None: any number."""
        step = 1 if self.integer and self.step is None else self.step
        return None if step is None else round((self.high - self.low) / step) + 1

    def _middle(self) -> float:
        middle = math.sqrt(self.low) * math.sqrt(self.high) if self.log else self.low / 2 + self.high / 2
        step = 1 if self.integer and self.step is None else self.step
        if step is not None:
            middle = self.low + math.floor((middle - self.low) / step + 1e-9) * step
        # 0.45, not 0.44999999999999996: people read this number.
        middle = min(max(float(f"{middle:.12g}"), self.low), self.high)
        return round(middle) if self.integer else middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several options, drawn by its label."""

    labels: tuple[str, ...]
    default: str  # label of trial 0

    def holds(self, value: Any) -> bool:
        """Whether `value` can be drawn."""
        return isinstance(value, str) and value in self.labels


Distribution = Number | Choice


def checked(values: Mapping[str, Any], name: str, distribution: Distribution) -> Any:
    """The value of a parameter.

    Raises:
        ConfigError: it is missing, or cannot be drawn from the distribution.
    """
    if name not in values:
        raise ConfigError(f"{name}: no value for this parameter")
    if not distribution.holds(values[name]):
        if isinstance(distribution, Choice):
            raise ConfigError(f"{name}: {values[name]!r} is not one of: {', '.join(distribution.labels)}")
        raise ConfigError(
            f"{name}: not in [{shown(distribution.low)}, {shown(distribution.high)}] (got {shown(values[name])})"
        )
    return values[name]


@dataclass(frozen=True, slots=True)
class Block:
    """A mapping, which can hold parameters."""

    node: Node
    entries: "Mapping[str, Spec]"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that a search draws."""

    node: Node
    name: str
    distribution: Distribution
    options: "Mapping[str, Spec]"  # of a choice, by label; empty for a number
    condition: str = ""  # the name of the choice that this parameter depends on


Spec = Node | Block | Parameter  # a fixed value, a block, or a parameter


def distribution_of(node: Node) -> str | None:
    """The name of the distribution that a node is written as, valid or not; None for a value or a block."""
    return next((key for key in node.entries if key in DISTRIBUTIONS), None)


def options(node: Node) -> dict[str, Node]:
    """The options of a choice by label, in the order of the file."""
    listed = node.entries["choice"].value
    labelled: dict[str, Node] = {}
    for option in listed if isinstance(listed, tuple) else ():
        unique = next(text for text in _numbered(label(option)) if text not in labelled)
        labelled[unique] = option
    return labelled


def label(option: Node) -> str:
    """The label of an option, without the number that makes it unique."""
    distribution = distribution_of(option)
    if distribution:
        return distribution
    kind = option.entries.get("kind")
    if kind and isinstance(kind.value, str):
        return kind.value
    if any(distribution_of(node) for node in option.walk()):
        return "block"
    text = shown(option.plain(), limit=200)
    return text.strip("'\"") if isinstance(option.value, str) else text.strip("{}")


def _numbered(text: str) -> Iterator[str]:
    yield text
    number = 2
    while True:
        yield f"{text}_{number}"
        number += 1


def parse(node: Node, name: str, condition: str, problems: Problems) -> Spec:
    """Parse `node`, and all nodes in it, as a value, a block or a parameter.

    Args:
        node: part of the searchable blocks.
        name: its path, with the labels of the options around it.
        condition: the name of the choice that it is an option of; "" outside a choice.
        problems: collects the mistakes.
    """
    distribution = distribution_of(node)
    if distribution == "choice":
        return _parse_choice(node, name, condition, problems)
    if distribution:
        return _parse_number(node, name, condition, problems)
    if isinstance(node.value, tuple):
        for i, entry in enumerate(node.value):
            if any(distribution_of(below) for below in entry.walk()):
                problems.add(
                    entry, join(name, str(i)), "a list cannot hold a distribution; write a choice of lists instead"
                )
                problems.close(node)
    if isinstance(node.value, Mapping):
        entries = {key: parse(entry, join(name, key), condition, problems) for key, entry in node.value.items()}
        return Block(node, entries)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        problems.add(node, name, f"must be a finite number (got {shown(node.value)})")
        problems.close(node)
    return node


def _parse_number(node: Node, name: str, condition: str, problems: Problems) -> Spec:
    kind = str(distribution_of(node))
    try:
        _refuse_other_keys(node, kind)
        low, high, *rest = _bounds(kind, node.entries[kind])
        default = node.entries["default"].value if "default" in node.entries else None
        number = Number(
            low=low,
            high=high,
            log=kind in ("loguniform", "logint"),
            step=rest[0] if rest else None,
            integer=kind in ("int", "logint"),
            default=_number(default, "the default") if "default" in node.entries else None,
        )
    except ValueError as error:
        return _broken(node, name, str(error), problems)
    return Parameter(node, name, number, {}, condition)


def _bounds(kind: str, node: Node) -> list[float]:
    counts, form = {
        "quniform": ((3,), "[low, high, step]"),
        "int": ((2, 3), "[low, high] or [low, high, step]"),
    }.get(kind, ((2,), "[low, high]"))
    entries = node.value
    if not isinstance(entries, tuple) or len(entries) not in counts:
        raise ValueError(f"{kind} takes {form} (got {shown(node.plain())})")
    numbers = [_number(entry.value, f"{kind} takes numbers: each end") for entry in entries]
    if kind in ("int", "logint"):
        if any(not isinstance(number, int) for number in numbers):
            raise ValueError(f"{kind} takes whole numbers (got {shown(node.plain())})")
        return numbers
    return [float(number) for number in numbers]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number (got {shown(value)})")
    return value


def _parse_choice(node: Node, name: str, condition: str, problems: Problems) -> Spec:
    listed = node.entries["choice"]
    try:
        _refuse_other_keys(node, "choice")
        if not isinstance(listed.value, tuple) or not listed.value:
            raise ValueError(f"choice takes a list of at least one option (got {shown(listed.plain())})")
        plain = [shown(option.plain(), limit=10**6) for option in listed.value]
        twice = next((text for i, text in enumerate(plain) if text in plain[:i]), None)
        if twice is not None:
            raise ValueError(f"choice offers {twice} twice")
        default = default_label(node)
    except ValueError as error:
        return _broken(node, name, str(error), problems)
    specs = {key: parse(option, join(name, key), name, problems) for key, option in options(node).items()}
    return Parameter(node, name, Choice(labels=tuple(specs), default=default), specs, condition)


def default_label(node: Node) -> str:
    """The label of a choice's default, written as a label or as an option; without a default, of its first option.

    Raises:
        ValueError: the default is not an option.
    """
    labelled = options(node)
    if "default" not in node.entries:
        return next(iter(labelled))
    default = node.entries["default"].plain()
    for name, option in labelled.items():
        if default == name or shown(default, limit=10**6) == shown(option.plain(), limit=10**6):
            return name
    raise ValueError(f"the default must be one of the options {', '.join(labelled)} (got {shown(default)})")


def with_options(node: Node, changed: Mapping[str, Node]) -> Node:
    """A choice with these options, by label, in place of its own; its default stays the same option."""
    choice = replace(node.entries["choice"], value=tuple(changed.values()))
    entries = {**node.entries, "choice": choice}
    if "default" in node.entries:
        with suppress(ValueError):  # a default that is no option is reported when the space is built
            position = list(changed).index(default_label(node))
            entries["default"] = node.entries["default"].graft(list(options(replace(node, value=entries)))[position])
    return replace(node, value=entries)


def _refuse_other_keys(node: Node, kind: str) -> None:
    for key in node.entries:
        if key not in (kind, "default"):
            raise ValueError(f"{kind} takes no other key than default (got {key!r}){cures.for_ends(kind, node)}")


def _broken(node: Node, name: str, message: str, problems: Problems) -> Node:
    problems.add(node, name, message)
    problems.close(node)
    return node
