"""Overrides: `--set path=value` replaces a setting, a distribution or a block of an experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tuner.config.distributions import distribution_of, options, with_options
from tuner.config.yaml_tree import Node, join, parse, shown
from tuner.errors import ConfigError
from tuner.redact import redacted


def override_setting(experiment: Node, text: str) -> Node:
    """Apply one override, `path=value`, to an experiment; the value is written as in the yaml.

    Raises:
        ConfigError: the text has another form, or the path leads through a value or past the option of a choice.
    """
    path, equals, written = text.partition("=")
    source = f"--set {redacted(text)}"
    if not equals or not path.strip():
        raise ConfigError(f"{source}: must have the form path=value, such as training.epochs=5")
    return _put(experiment, path.strip().split("."), parse(written, source, lines=False), "")


def _put(node: Node, keys: Sequence[str], value: Node, done: str) -> Node:
    """`node` with `value` at the end of the path `keys`, in which a choice is followed by the label of an option."""
    if not keys:
        return value
    key, *rest = keys
    if distribution_of(node) == "choice" and key not in node.entries:
        labelled = options(node)
        if key not in labelled:
            raise ConfigError(
                f"{value.source}: {done} is a choice, so name its option; one of: {_ways(labelled, keys, done)}"
            )
        return with_options(node, {**labelled, key: _put(labelled[key], rest, value, join(done, key))})
    if node.value is not None and not isinstance(node.value, Mapping):
        raise ConfigError(f"{value.source}: {done} is a value and has no {key!r} (got {shown(node.plain())})")
    below = node.entries.get(key, Node(None, source=value.source))
    entries = {**node.entries, key: _put(below, rest, value, join(done, key))}
    return replace(node, value=entries) if node.value is not None else replace(value, value=entries)


def _ways(labelled: Mapping[str, Node], keys: Sequence[str], done: str) -> str:
    """The paths that may be meant by one that names no option of a choice."""
    blocks = [name for name, option in labelled.items() if option.entries and not distribution_of(option)]
    return ", ".join(".".join([done, way, *keys]) for way in blocks) or ", ".join(join(done, way) for way in labelled)
