"""Completes an experiment: relative paths become absolute, and what the file leaves out gets its default.

A search stores the complete experiment, so that it does not change when a later version of the program has other
defaults.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from tuner.config.distributions import distribution_of, label, options, with_options
from tuner.config.space import Values
from tuner.config.yaml_tree import Node, join
from tuner.training.data_config import DataConfig


def with_absolute_paths(data: DataConfig, folder: Path) -> DataConfig:
    """Make the paths of `data` absolute, so that they are relative to the yaml wherever a worker runs."""
    names = ("train", "validate", "test", "vocabulary", "cache_folder")
    paths = {name: _absolute(getattr(data, name), folder) for name in names}
    sample = data.sample and replace(data.sample, directory=_absolute(data.sample.directory, folder))
    return replace(data, **paths, sample=sample)


def with_absolute_predictions(node: Node, folder: Path, key: str = "") -> Node:
    """Make `loss.distill.predictions` absolute, the only path in the searchable blocks."""
    if key == "predictions" and isinstance(node.value, str):
        return node.graft(_absolute(node.value, folder))
    if isinstance(node.value, tuple):
        return replace(node, value=tuple(with_absolute_predictions(entry, folder, key) for entry in node.value))
    if isinstance(node.value, Mapping):
        # `predictions` can be a choice of files.
        keys = {name: key if key == "predictions" else name for name in node.value}
        below = {name: with_absolute_predictions(entry, folder, keys[name]) for name, entry in node.value.items()}
        return replace(node, value=below)
    return node


def _absolute(path: Any, folder: Path) -> Any:
    if isinstance(path, tuple):
        return tuple(_absolute(entry, folder) for entry in path)
    if path is None or "://" in path:
        return path
    return os.path.abspath(folder / Path(path).expanduser())


def note_classes(node: Node, config: Any, path: str, values: Values, classes: dict[str, set[type]]) -> None:
    """Add to `classes`, by parameter path, the dataclass that each block of the tree became in one corner."""
    if distribution_of(node) == "choice":
        chosen = values[path]
        note_classes(options(node)[chosen], config, join(path, chosen), values, classes)
    elif is_dataclass(config):
        classes.setdefault(path, set()).add(type(config))
        for name, entry in node.entries.items():
            note_classes(entry, getattr(config, name), join(path, name), values, classes)


def with_defaults(node: Node, path: str, classes: Mapping[str, set[type]]) -> Node:
    """`node` with a default for every setting that is left out of a block, as `classes` knows the blocks."""
    if distribution_of(node) == "choice":
        filled = {key: with_defaults(option, join(path, key), classes) for key, option in options(node).items()}
        # An option whose label is its text would change its label, so it is not filled in.
        kept = {key: filled[key] if label(filled[key]) == label(old) else old for key, old in options(node).items()}
        return with_options(node, kept)
    if not isinstance(node.value, Mapping):
        return node
    entries = {name: with_defaults(entry, join(path, name), classes) for name, entry in node.value.items()}
    found = classes.get(path, set())
    if len(found) == 1:  # a block that becomes several classes is not filled in
        for setting in fields(next(iter(found))):
            if setting.name not in entries:
                entries[setting.name] = node.graft(as_lists(_default(setting)))
    return replace(node, value=entries)


def _default(setting: Any) -> Any:
    default = setting.default if setting.default is not MISSING else setting.default_factory()
    return asdict(default) if is_dataclass(default) and not isinstance(default, type) else default


def as_lists(value: Any) -> Any:
    """`value` with lists for tuples and dicts for mappings, as yaml has them."""
    if isinstance(value, Mapping):
        return {key: as_lists(entry) for key, entry in value.items()}
    return [as_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
