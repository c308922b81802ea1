"""From settings to the suggestion that has them: the way back through a search space.

Settings are given by yaml path, `{optimizer.learning_rate: 0.002}`, by a user (`search.first`, `tuner.steer try`) or by
an earlier search (`search.warm_start`).
"""

from collections.abc import Mapping
from typing import Any

from tuner.config.distributions import Block, Choice, Number, Parameter, Spec, checked
from tuner.config.yaml_tree import Node, join, shown
from tuner.errors import ConfigError, did_you_mean
from tuner.training.config import flatten


def locate(spec: Spec, path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the parameters in `spec`, so that the configuration has these settings.

    Args:
        spec: a part of a search space.
        path: of that part.
        settings: by yaml path; those of other parts have no effect, and what is left out has its default.

    Raises:
        ConfigError: a setting is unknown, is fixed at another value, or is not one that the search can draw.
    """
    given = {key: value for key, value in settings.items() if key == path or key.startswith(f"{path}.") or not path}
    if isinstance(spec, Block):
        for key in given:
            entry = key.removeprefix(f"{path}.").split(".")[0]
            if entry not in spec.entries:
                raise ConfigError(f"{key}: unknown setting{did_you_mean(entry, spec.entries)}")
        parts = [locate(entry, join(path, key), given) for key, entry in spec.entries.items()]
        return {name: value for part in parts for name, value in part.items()}
    if isinstance(spec, Node):
        _check_fixed(spec, path, given)
        return {}
    if isinstance(spec.distribution, Choice):
        return _option(spec, path, given)
    return {spec.name: _number(spec.distribution, path, given)}


def _check_fixed(node: Node, path: str, given: Mapping[str, Any]) -> None:
    fixed = flatten(node.plain(), path) if isinstance(node.value, Mapping) else {path: node.plain()}
    for key, value in given.items():
        if key not in fixed:
            raise ConfigError(f"{key}: unknown setting{did_you_mean(key, fixed)}")
        if _listed(value) != _listed(fixed[key]):
            raise ConfigError(f"{key}: is {shown(fixed[key])} in every trial, and not searched (got {shown(value)})")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _number(number: Number, path: str, given: Mapping[str, Any]) -> Any:
    for key in given:
        if key != path:
            raise ConfigError(f"{key}: unknown setting")
    value = given.get(path, number.default)
    if number.integer and isinstance(value, float) and value.is_integer():
        value = int(value)
    return checked({path: value}, path, number)


def _option(choice: Parameter, path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a choice, whose option has the given settings: the default option, where it has them."""
    assert isinstance(choice.distribution, Choice)
    default, problems = choice.distribution.default, []
    for label in sorted(choice.options, key=lambda label: label != default):
        try:
            return {choice.name: label, **locate(choice.options[label], path, given)}
        except ConfigError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise ConfigError(problems[0])
    asked = ", ".join(f"{key}: {shown(value)}" for key, value in given.items())
    raise ConfigError(f"{path}: none of its options {', '.join(choice.distribution.labels)} has {asked}")
