"""What a folder of shards holds, in lines to read, and as the block `data:` of experiments.yaml to paste."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data.inspect.summary import Summary
from data.schema import FEATURES, ID, ID_KEYS, LABELS_KEY, NUM_CLASSES, SEGMENT_LABELS

SPLITS = {"train": "train", "validate": "valid|eval|dev", "test": "test"}  # what the names of their shards begin with


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Shards of one folder whose names begin alike."""

    folder: str
    beginning: str  # of the names; "": of any name
    ending: str  # of the names
    split: str | None  # train, validate or test, as the names or the folder's name say
    num_shards: int
    num_records: int
    num_bytes: int

    @property
    def pattern(self) -> str:
        """The glob of the shards."""
        return f"{self.folder}/{self.beginning}*{self.ending}"


def groups_of(shards: Mapping[str, tuple[int, int]]) -> list[Group]:
    """Groups shards by folder and split.

    Args:
        shards: numbers of records and bytes by path.
    """
    parts: dict[tuple[str, str], list[str]] = {}
    for path in sorted(shards):
        folder, _, name = path.rpartition("/")
        word = "" if _split_of(folder.rpartition("/")[2]) else _beginning(name)
        parts.setdefault((folder, word), []).append(path)
    return [
        Group(
            folder=folder,
            beginning=word,
            ending=_common_ending(paths),
            split=_split_of(folder.rpartition("/")[2]) or _split_of(word),
            num_shards=len(paths),
            num_records=sum(shards[path][0] for path in paths),
            num_bytes=sum(shards[path][1] for path in paths),
        )
        for (folder, word), paths in parts.items()
    ]


def overview(groups: list[Group], summary: Summary) -> Iterator[str]:
    """Yields what is there: the groups, the features, the id and the labels."""
    for group in groups:
        size = f"{group.num_bytes / 1e6:,.1f} MB"
        yield f"{group.pattern}: {group.num_shards:,} shards, {group.num_records:,} videos, {size}"
    frames = f", {summary.num_frames / max(summary.num_records, 1):.1f} frames a video" if summary.lists else ""
    yield f"level: {summary.level}{frames}"
    for key, counts in summary.features.items():
        yield f"feature {key!r}: {counts.width:,} values, {counts.kind}"
    yield f"id: {_shown(summary.id_key)}"
    labels = summary.context.get(summary.labels_key or "")
    if labels is None:
        yield "labels: none is clear"
    else:
        each = labels.num_values / max(summary.num_records, 1)
        yield f"labels: {summary.labels_key!r}, {each:.2f} a video, the largest is {labels.largest:,}"


def block(groups: list[Group], summary: Summary) -> Iterator[str]:
    """Yields the block `data:`, with what could not be told as a comment."""
    yield "data:"
    for split in SPLITS:
        patterns = [group.pattern for group in groups if group.split == split]
        if not patterns and split == "train":
            patterns = [group.pattern for group in groups if group.split is None]
        if patterns:
            yield f"  {split}: {_yaml(patterns[0] if len(patterns) == 1 else patterns)}"
        elif split != "test":
            yield f"  # {split}: no shards were found for it"
    if summary.level != "video":
        yield f"  level: {summary.level}"
    names = summary.names()
    features = {names[key]: counts.width for key, counts in summary.features.items()}
    usual = features == dict(FEATURES[summary.level])
    if not usual:
        yield f"  features: {_yaml(features)}" if features else "  # features: none has the same width in all records"
    keys = {name: key for key, name in names.items() if name != key}
    if summary.id_key is not None and summary.id_key not in ID_KEYS:
        keys[ID] = summary.id_key
    labels_key = summary.labels_key
    if labels_key is not None and labels_key not in (LABELS_KEY, SEGMENT_LABELS):
        keys[LABELS_KEY] = labels_key
    if keys:
        yield f"  keys: {_yaml(keys)}"
    if labels_key is not None:
        largest = summary.context[labels_key].largest
        if usual and largest < NUM_CLASSES:
            yield f"  num_classes: {NUM_CLASSES}  # of YouTube-8M; the largest label is {largest}"
        else:
            yield f"  num_classes: {largest + 1}  # the largest label is {largest}; other shards may have larger ones"


def _split_of(word: str) -> str | None:
    return next((split for split, stem in SPLITS.items() if re.fullmatch(f"({stem})[a-z]*", word)), None)


def _beginning(name: str) -> str:
    """Returns the word of a split with which a name begins; "" where it does not."""
    found = re.match(f"({'|'.join(SPLITS.values())})[a-z]*", name)
    return "" if found is None else found[0]


def _common_ending(paths: list[str]) -> str:
    """Returns the ending of the names, from the last dot on; "" where they have several."""
    endings = {os.path.splitext(path)[1] for path in paths}
    return endings.pop() if len(endings) == 1 else ""


def _shown(key: str | None) -> str:
    return "none is clear" if key is None else repr(key)


def _yaml(value: object) -> str:
    """Returns a value in yaml's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str) and re.fullmatch(r"[a-z]+_[a-z_]*|[A-Za-z]{4,}/[\w/]*|rgb|audio|id|labels", value):
        return value  # no word that yaml takes for a number, a truth value or null
    return json.dumps(value, ensure_ascii=False)
