"""The search space: the distributions found among the values of an experiment's searchable blocks.

    dropout: {uniform: [0.2, 0.7]}                     also loguniform, quniform [low, high, step], int [low, high(, step)],
    batch_size: {choice: [128, 256], default: 256}     logint; each may say its `default`
    l1: {choice: [0, {loguniform: [1e-3, 10]}]}        an option may be a distribution, or a block with distributions

A parameter is named by its yaml path: `model.dropout`, `loss.l1`. A choice is drawn by label: the option's own text, the
name of its distribution, or the `kind` of its block. What exists only for one option carries the label in its name:
`loss.l1.loguniform`, `optimizer.adam.learning_rate`.

*Values* are a suggestion: a number or a label for every parameter that is in effect. Knows no optuna: a sampler comes
in as two functions.
"""  # noqa: E501

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from typing import Any, Protocol

from tuner.errors import ConfigError
from tuner.yaml_tree import Node, Problems, join, shown

Values = Mapping[str, Any]  # number or label by parameter name

DISTRIBUTIONS = ("uniform", "loguniform", "quniform", "int", "logint", "choice")

# Combinations of options that are checked one by one; a larger space is checked option by option.
MAX_COMBINATIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A range of numbers, both ends included."""

    low: float
    high: float
    log: bool = False  # even in the logarithm
    step: float | None = None  # distance of neighbouring values; None: 1 for whole numbers, else any value
    integer: bool = False
    default: float | None = None  # of trial 0; None: the middle, on a log scale the log-middle

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
            # In decimal, as they were written: in binary 0.3 / 0.1 has a remainder.
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

    def _middle(self) -> float:
        middle = math.sqrt(self.low) * math.sqrt(self.high) if self.log else self.low / 2 + self.high / 2
        step = 1 if self.integer and self.step is None else self.step
        if step is not None:
            middle = self.low + math.floor((middle - self.low) / step + 1e-9) * step
        # 0.45 and not 0.44999999999999996: this number is read by people.
        middle = min(max(float(f"{middle:.12g}"), self.low), self.high)
        return round(middle) if self.integer else middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several options, each drawn by its label."""

    labels: tuple[str, ...]
    default: str  # of trial 0

    def holds(self, value: Any) -> bool:
        """Whether `value` can be drawn."""
        return isinstance(value, str) and value in self.labels


Distribution = Number | Choice
Pick = Callable[[str, Distribution], Any]  # a value for the parameter of that name


class Ask(Protocol):
    """Where `Space.sample` takes its values from."""

    def number(self, name: str, distribution: Number) -> float:
        """A number of the range; a whole one where the range is one of whole numbers."""

    def category(self, name: str, labels: Sequence[str]) -> str:
        """One of the labels."""


@dataclass(frozen=True, slots=True)
class _Block:
    node: Node
    entries: "Mapping[str, _Spec]"


@dataclass(frozen=True, slots=True)
class _Parameter:
    node: Node
    name: str
    distribution: Distribution
    options: "Mapping[str, _Spec]"  # by label; none for a number
    condition: str = ""  # the choice that this parameter depends on


_Spec = Node | _Block | _Parameter  # a value as it stands, a block, something drawn


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may vary, and everything beside it in the same blocks."""

    tree: Node  # the searchable blocks, as written
    _root: _Spec = field(compare=False, repr=False)

    @classmethod
    def build(cls, tree: Node, problems: Problems | None = None) -> "Space":
        """Find the distributions in `tree`, a mapping from block names to blocks.

        Args:
            tree: the searchable blocks.
            problems: collects what is wrong with distributions; None raises it.

        Raises:
            ConfigError: a distribution is wrong, and no `problems` were given.
        """
        found = problems or Problems()
        space = cls(tree, _parse(tree, "", "", found))
        if problems is None:
            found.check()
        return space

    def names(self) -> list[str]:
        """Every parameter, conditional ones included, in the order of the file."""
        return [parameter.name for parameter in _parameters(self._root)]

    def conditional_names(self) -> list[str]:
        """The parameters that exist only for one option of a choice."""
        return [parameter.name for parameter in _parameters(self._root) if parameter.condition]

    def defaults(self) -> dict[str, Any]:
        """The values of trial 0: each distribution's default."""
        return self._values(lambda name, distribution: distribution.default)

    def sample(self, ask: Ask) -> dict[str, Any]:
        """Values from `ask`, which is asked for the parameters in effect only, a choice before what depends on it."""

        def pick(name: str, distribution: Distribution) -> Any:
            if isinstance(distribution, Number):
                return ask.number(name, distribution)
            return ask.category(name, distribution.labels)

        return self._values(pick)

    def optuna(self, trial: Any) -> dict[str, Any]:
        """Values that an optuna trial suggests."""
        return self.sample(_AskTrial(trial))

    def distributions(self, values: Values) -> dict[str, Distribution]:
        """The parameters that are in effect for `values`, with their distributions.

        Raises:
            ConfigError: as `resolve`.
        """
        found: dict[str, Distribution] = {}

        def pick(name: str, distribution: Distribution) -> Any:
            found[name] = distribution
            return _value(values, name, distribution)

        _descend(self._root, pick)
        unknown = [name for name in values if name not in found]
        if unknown:
            others = difflib.get_close_matches(unknown[0], found, n=1)
            hint = f"; did you mean {others[0]!r}?" if others else ""
            raise ConfigError(f"{unknown[0]}: no parameter of this configuration{hint}")
        return found

    def resolve(self, values: Values) -> dict[str, Any]:
        """The searchable blocks with every distribution replaced by its value, as nested dicts.

        Raises:
            ConfigError: a value is missing, cannot be drawn from its distribution, or belongs to no parameter.
        """
        resolved: dict[str, Any] = self.resolved(values).plain()
        return resolved

    def resolved(self, values: Values) -> Node:
        """The same as a tree that knows its lines."""
        self.distributions(values)  # checks them
        return _descend(self._root, lambda name, distribution: values[name])

    def corners(self) -> list[dict[str, Any]]:
        """Values to check a space by: both ends of every range under every combination of options.

        Where these are more than MAX_COMBINATIONS: every option at least once, the other choices at their defaults.
        """
        routes = list(islice(_combinations(self._root), MAX_COMBINATIONS + 1))
        if len(routes) > MAX_COMBINATIONS:
            routes = list(_routes(self._root, {}))
        corners = {}
        for route in routes:
            for end in ("low", "high"):

                def pick(name: str, distribution: Distribution, route: Values = route, end: str = end) -> Any:
                    if isinstance(distribution, Number):
                        return getattr(distribution, end)
                    return route.get(name, distribution.default)

                values = self._values(pick)
                corners[tuple(values.items())] = values
        return list(corners.values())

    def unsupported_by(self, sampler: str) -> list[str]:
        """What a sampler leaves to chance in this space, one sentence for each parameter."""
        sentences = []
        for parameter in _parameters(self._root):
            if sampler == "cmaes" and isinstance(parameter.distribution, Choice):
                sentences.append(
                    f"cmaes draws {parameter.name} at random: it models numbers only, and this is a choice"
                )
            elif sampler in ("cmaes", "gp", "qmc") and parameter.condition:
                sentences.append(
                    f"{sampler} draws {parameter.name} at random: it models only what every trial has, "
                    f"and this depends on {parameter.condition}"
                )
        return sentences

    def _values(self, pick: Pick) -> dict[str, Any]:
        values: dict[str, Any] = {}

        def record(name: str, distribution: Distribution) -> Any:
            values[name] = pick(name, distribution)
            return values[name]

        _descend(self._root, record)
        return values


@dataclass(frozen=True, slots=True)
class _AskTrial:
    trial: Any  # an optuna.Trial

    def number(self, name: str, distribution: Number) -> float:
        if distribution.integer:
            step = 1 if distribution.step is None else distribution.step
            drawn = self.trial.suggest_int(name, distribution.low, distribution.high, step=step, log=distribution.log)
        else:
            drawn = self.trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        return drawn  # type: ignore[no-any-return]

    def category(self, name: str, labels: Sequence[str]) -> str:
        return self.trial.suggest_categorical(name, labels)  # type: ignore[no-any-return]


def distribution_of(node: Node) -> str | None:
    """The distribution that a node says it is, right or wrong; None for a value or a block."""
    return next((key for key in node.entries if key in DISTRIBUTIONS), None)


def options(node: Node) -> dict[str, Node]:
    """The options of a choice by label, in order."""
    listed = node.entries["choice"].value
    labelled: dict[str, Node] = {}
    for option in listed if isinstance(listed, tuple) else ():
        label = _label(option)
        unique = next(text for text in _numbered(label) if text not in labelled)
        labelled[unique] = option
    return labelled


def _label(option: Node) -> str:
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


def _numbered(label: str) -> Iterator[str]:
    yield label
    number = 2
    while True:
        yield f"{label}_{number}"
        number += 1


def _parse(node: Node, name: str, condition: str, problems: Problems) -> _Spec:
    """What `node` is: `name` is its path with the labels of the options around it."""
    distribution = distribution_of(node)
    if distribution == "choice":
        return _parse_choice(node, name, condition, problems)
    if distribution:
        return _parse_number(node, name, condition, problems)
    if isinstance(node.value, tuple):
        for i, entry in enumerate(node.value):
            if any(distribution_of(below) for below in entry.walk()):
                problems.add(
                    entry, join(name, str(i)), "a list cannot hold a distribution; make the list a choice of lists"
                )
                problems.close(node)
    if isinstance(node.value, Mapping):
        entries = {key: _parse(entry, join(name, key), condition, problems) for key, entry in node.value.items()}
        return _Block(node, entries)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        problems.add(node, name, f"must be a finite number (got {shown(node.value)})")
        problems.close(node)
    return node


def _parse_number(node: Node, name: str, condition: str, problems: Problems) -> _Spec:
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
    return _Parameter(node, name, number, {}, condition)


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


def _parse_choice(node: Node, name: str, condition: str, problems: Problems) -> _Spec:
    listed = node.entries["choice"]
    try:
        _refuse_other_keys(node, "choice")
        if not isinstance(listed.value, tuple) or not listed.value:
            raise ValueError(f"choice takes a list of at least one option (got {shown(listed.plain())})")
        plain = [shown(option.plain(), limit=10**6) for option in listed.value]
        twice = next((text for i, text in enumerate(plain) if text in plain[:i]), None)
        if twice is not None:
            raise ValueError(f"choice offers {twice} twice")
        labelled = options(node)
        default = _default_label(node, labelled)
    except ValueError as error:
        return _broken(node, name, str(error), problems)
    specs = {label: _parse(option, join(name, label), name, problems) for label, option in labelled.items()}
    return _Parameter(node, name, Choice(labels=tuple(labelled), default=default), specs, condition)


def _default_label(node: Node, labelled: Mapping[str, Node]) -> str:
    """The label of the default option, which may be written as the label or as the option's value."""
    if "default" not in node.entries:
        return next(iter(labelled))
    default = node.entries["default"].plain()
    for label, option in labelled.items():
        if default == label or shown(default) == shown(option.plain()):
            return label
    raise ValueError(f"the default must be one of the options {', '.join(labelled)} (got {shown(default)})")


def _refuse_other_keys(node: Node, kind: str) -> None:
    for key in node.entries:
        if key not in (kind, "default"):
            raise ValueError(f"beside {kind} only its default can stand (got {key!r})")


def _broken(node: Node, name: str, message: str, problems: Problems) -> Node:
    problems.add(node, name, message)
    problems.close(node)
    return node


def _descend(spec: _Spec, pick: Pick) -> Node:
    """The tree with every parameter replaced by what `pick` gives for it."""
    if isinstance(spec, Node):
        return spec
    if isinstance(spec, _Block):
        return replace(spec.node, value={key: _descend(entry, pick) for key, entry in spec.entries.items()})
    value = pick(spec.name, spec.distribution)
    if isinstance(spec.distribution, Number):
        return replace(spec.node, value=value)
    return _descend(spec.options[value], pick)


def _value(values: Values, name: str, distribution: Distribution) -> Any:
    if name not in values:
        raise ConfigError(f"{name}: no value for this parameter")
    if not distribution.holds(values[name]):
        if isinstance(distribution, Choice):
            raise ConfigError(f"{name}: {values[name]!r} is not one of: {', '.join(distribution.labels)}")
        raise ConfigError(
            f"{name}: not in [{shown(distribution.low)}, {shown(distribution.high)}] (got {shown(values[name])})"
        )
    return values[name]


def _parameters(spec: _Spec) -> Iterator[_Parameter]:
    if isinstance(spec, _Parameter):
        yield spec
    below = spec.entries if isinstance(spec, _Block) else spec.options if isinstance(spec, _Parameter) else {}
    for entry in below.values():
        yield from _parameters(entry)


def _routes(spec: _Spec, chosen: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The labels that lead to each option of each choice once; first of all those of no choice."""
    if not chosen:
        yield {}
    if isinstance(spec, _Block):
        for entry in spec.entries.values():
            yield from (route for route in _routes(entry, chosen) if route)
    if isinstance(spec, _Parameter):
        for label, option in spec.options.items():
            route = {**chosen, spec.name: label}
            yield route
            yield from _routes(option, route)


def _combinations(spec: _Spec) -> Iterator[Mapping[str, str]]:
    """Every combination of labels that can be in effect together."""
    if isinstance(spec, _Parameter) and spec.options:
        for label, option in spec.options.items():
            for below in _combinations(option):
                yield {spec.name: label, **below}
    elif isinstance(spec, _Block):
        yield from _product([entry for entry in spec.entries.values() if isinstance(entry, _Block | _Parameter)])
    else:
        yield {}


def _product(specs: Sequence[_Spec]) -> Iterator[Mapping[str, str]]:
    if not specs:
        yield {}
        return
    for first in _combinations(specs[0]):
        for rest in _product(specs[1:]):
            yield {**first, **rest}
