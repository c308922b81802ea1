"""The search space: the parameters of an experiment's searchable blocks.

A parameter is named by its yaml path: `model.dropout`, `loss.l1`. A choice is drawn by the label of its option. A
parameter that exists for one option only has that label in its name: `loss.l1.loguniform`,
`optimizer.adam.learning_rate`.

*Values* are a suggestion: a number or a label for every parameter in effect. The module does not import optuna: a
sampler is passed in as two functions (`Ask`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

from tuner.config.distributions import Block, Choice, Distribution, Number, Parameter, Spec, checked, parse
from tuner.config.locate import locate
from tuner.config.yaml_tree import Node, Problems
from tuner.errors import ConfigError, did_you_mean
from tuner.training.config import flatten

__all__ = ["Ask", "Choice", "Distribution", "Number", "Space", "Values"]

Values = Mapping[str, Any]  # number or label by parameter name

# The largest number of trials of a grid.
MAX_GRID = 10_000
# So many combinations of options are checked one by one; a larger space is checked option by option.
MAX_COMBINATIONS = 256

Pick = Callable[[str, Distribution], Any]  # gives a value for the parameter of that name


class Ask(Protocol):
    """The source of the values of `Space.sample`."""

    def number(self, name: str, distribution: Number) -> float:
        """A number of the range; an int where the distribution is one of whole numbers."""

    def category(self, name: str, labels: Sequence[str]) -> str:
        """One of the labels."""


@dataclass(frozen=True)
class Space:
    """The searchable blocks of an experiment: their parameters and their fixed values."""

    tree: Node  # the searchable blocks as they were written
    _root: Spec = field(compare=False, repr=False)

    @classmethod
    def build(cls, tree: Node, problems: Problems | None = None) -> "Space":
        """Find the distributions in `tree`, a mapping from block names to blocks.

        Args:
            tree: the searchable blocks.
            problems: collects the mistakes in distributions; None: they are raised.

        Raises:
            ConfigError: a distribution is not valid, and `problems` is None.
        """
        found = problems or Problems()
        space = cls(tree, parse(tree, "", "", found))
        if problems is None:
            found.check()
        return space

    def names(self) -> list[str]:
        """The names of all parameters, conditional ones included, in the order of the file."""
        return [parameter.name for parameter in self.parameters()]

    def conditional_names(self) -> list[str]:
        """The names of the parameters that exist for one option of a choice only."""
        return [parameter.name for parameter in self.parameters() if parameter.condition]

    def defaults(self) -> dict[str, Any]:
        """The values of trial 0: each distribution's default."""
        return self._values(lambda name, distribution: distribution.default)

    def sample(self, ask: Ask) -> dict[str, Any]:
        """Draw values from `ask` for the parameters in effect: a choice before the parameters that depend on it."""

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
            return checked(values, name, distribution)

        _descend(self._root, pick)
        unknown = [name for name in values if name not in found]
        if unknown:
            raise ConfigError(
                f"{unknown[0]}: is not a parameter of this configuration{did_you_mean(unknown[0], found)}"
            )
        return found

    def resolve(self, values: Values) -> dict[str, Any]:
        """The searchable blocks with every distribution replaced by its value, as nested dicts.

        Raises:
            ConfigError: a value is missing, cannot be drawn from its distribution, or belongs to no parameter.
        """
        resolved: dict[str, Any] = self.resolved(values).plain()
        return resolved

    def resolved(self, values: Values) -> Node:
        """The result of `resolve` as a tree of nodes, which know their lines in the file."""
        self.distributions(values)  # checks the values
        return _descend(self._root, lambda name, distribution: values[name])

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the configuration with these settings; what is left out has its default.

        Args:
            settings: by yaml path, such as `optimizer.learning_rate`.

        Raises:
            ConfigError: a setting is unknown, is fixed at another value, or is not one that the search can draw.
        """
        return locate(self._root, "", settings)

    @property
    def num_combinations(self) -> int | None:
        """How many configurations there are; None: a parameter has any number of values."""
        return _count(self._root)

    def setting(self, values: Values, path: str) -> Any:
        """One setting of the configuration with these values, by its yaml path; nothing is checked."""
        spec = _chosen(self._root, values)
        for key in path.split("."):
            assert isinstance(spec, Block | Node)
            spec = _chosen(spec.entries[key], values)
        if isinstance(spec, Parameter):
            return values[spec.name]
        assert isinstance(spec, Node)
        return spec.plain()

    @cached_property  # every suggestion needs it, and it resolves every corner
    def searched(self) -> list[str]:
        """The settings that differ between trials, by yaml path; a conditional one under the path of its choice.

        A setting with the same value in all blocks that have it is left out where `kind` already distinguishes these
        blocks.
        """
        corners = [flatten(self.resolve(corner)) for corner in self.corners()]
        found = dict.fromkeys(path for corner in corners for path in corner)
        given = {path: [corner[path] for corner in corners if path in corner] for path in found}
        varied = {path for path, values in given.items() if any(value != values[0] for value in values)}

        def known_by_kind(path: str) -> bool:
            blocks = path.split(".")[:-1]
            return any(".".join([*blocks[:i], "kind"]) in varied for i in range(1, len(blocks) + 1))

        return [
            path for path in found if path in varied or (len(given[path]) < len(corners) and not known_by_kind(path))
        ]

    def settings(self, values: Values) -> dict[str, Any]:
        """The values of a suggestion as tables show them: the value of each searched setting, by yaml path.

        Raises:
            ConfigError: as `resolve`.
        """
        resolved = flatten(self.resolve(values))
        return {path: resolved[path] for path in self.searched if path in resolved}

    def corners(self) -> list[dict[str, Any]]:
        """Values with which to check the space: both ends of every range under every combination of options.

        With more than MAX_COMBINATIONS combinations: every option at least once, with all other choices at their
        defaults.
        """
        routes: list[Mapping[str, Any]] = list(islice(_combinations(self._root), MAX_COMBINATIONS + 1))
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

    @cached_property
    def grid(self) -> list[dict[str, Any]]:
        """Every combination once, the defaults first.

        Raises:
            ValueError: a parameter has any number of values, or there are more than MAX_GRID combinations.
        """
        found = list(islice(_combinations(self._root, grid=True), MAX_GRID + 1))
        if len(found) > MAX_GRID:
            raise ValueError(f"a grid has at most {MAX_GRID:,} combinations, but the space has more")
        first = self.defaults()
        return [first, *(values for values in found if values != first)]

    def parameters(self) -> list[Parameter]:
        """All parameters, conditional ones included, in the order of the file."""
        return list(_parameters(self._root))

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
        return drawn

    def category(self, name: str, labels: Sequence[str]) -> str:
        return self.trial.suggest_categorical(name, labels)


def _descend(spec: Spec, pick: Pick) -> Node:
    """The tree with every parameter replaced by what `pick` gives for it."""
    if isinstance(spec, Node):
        return spec
    if isinstance(spec, Block):
        return replace(spec.node, value={key: _descend(entry, pick) for key, entry in spec.entries.items()})
    value = pick(spec.name, spec.distribution)
    if isinstance(spec.distribution, Number):
        return replace(spec.node, value=value, drawn=spec.node)
    return _descend(spec.options[value], pick)


def _count(spec: Spec) -> int | None:
    """How many combinations there are of the values below `spec`; None: any number."""
    if isinstance(spec, Node):
        return 1
    if isinstance(spec, Parameter) and not spec.options:
        assert isinstance(spec.distribution, Number)
        return spec.distribution.num_values
    counts = [_count(each) for each in (spec.entries if isinstance(spec, Block) else spec.options).values()]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return math.prod(known) if isinstance(spec, Block) else sum(known)


def _chosen(spec: Spec, values: Values) -> Spec:
    """The option that is in effect, where a choice has some."""
    while isinstance(spec, Parameter) and spec.options:
        spec = spec.options[values[spec.name]]
    return spec


def _parameters(spec: Spec) -> Iterator[Parameter]:
    if isinstance(spec, Parameter):
        yield spec
    below = spec.entries if isinstance(spec, Block) else spec.options if isinstance(spec, Parameter) else {}
    for entry in below.values():
        yield from _parameters(entry)


def _routes(spec: Spec, chosen: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The labels that lead to each option of each choice once; first of all those of no choice."""
    if not chosen:
        yield {}
    if isinstance(spec, Block):
        for entry in spec.entries.values():
            yield from (route for route in _routes(entry, chosen) if route)
    if isinstance(spec, Parameter):
        for label, option in spec.options.items():
            route = {**chosen, spec.name: label}
            yield route
            yield from _routes(option, route)


def _combinations(spec: Spec, grid: bool = False) -> Iterator[dict[str, Any]]:
    """Every combination of labels that can be in effect together, in a grid of all values."""
    if isinstance(spec, Parameter) and spec.options:
        for label, option in spec.options.items():
            for below in _combinations(option, grid):
                yield {spec.name: label, **below}
    elif isinstance(spec, Parameter) and grid:
        assert isinstance(spec.distribution, Number)
        yield from ({spec.name: value} for value in _values_of(spec.name, spec.distribution))
    elif isinstance(spec, Block):
        yield from _product([entry for entry in spec.entries.values() if isinstance(entry, Block | Parameter)], grid)
    else:
        yield {}


def _product(specs: Sequence[Spec], grid: bool) -> Iterator[dict[str, Any]]:
    if not specs:
        yield {}
        return
    for first in _combinations(specs[0], grid):
        for rest in _product(specs[1:], grid):
            yield {**first, **rest}


def _values_of(name: str, number: Number) -> Iterator[float]:
    if number.num_values is None:
        raise ValueError(f"{name} has infinitely many values; a grid takes choices, whole numbers and steps")
    step = number.step or 1
    for i in range(number.num_values):
        value = float(f"{number.low + i * step:.12g}")  # 0.3, not 0.30000000000000004: people read this number
        yield round(value) if number.integer else value
