"""What many records have in common, without a schema: the features and their widths, the id, the labels.

Of what the keys are for, only their values tell: a feature is a list of floats (of a frame also of bytes) with the same
number of values in every record, the labels are integers under a key that says so, and the id is one text.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data.schema import ID, ID_KEYS, LABELS_KEY, RATINGS, SEGMENT_LABELS, SEGMENT_START, Level
from data.tfrecord.examples import Example, Values, type_of


@dataclass(slots=True)
class KeyCounts:
    """The values of one key in all records."""

    kinds: Counter[str] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)  # numbers of values; of one bytes value its bytes
    num_values: int = 0
    largest: int = -1  # of integers

    def add(self, values: Values, num_steps: int = 1) -> None:
        """Counts the values of a record, or of one of its `num_steps` frames."""
        kind = type_of(values)
        self.kinds[kind] += 1
        self.widths[len(values[0]) if isinstance(values, list) and len(values) == 1 else len(values)] += 1
        self.num_values += len(values) * num_steps
        if kind == "int64" and len(values):
            self.largest = max(self.largest, int(np.max(values)))

    @property
    def width(self) -> int | None:
        """The number of values; None where it varies, or the type does."""
        return next(iter(self.widths)) if len(self.widths) == 1 == len(self.kinds) else None

    @property
    def kind(self) -> str:
        """The type of most."""
        return self.kinds.most_common(1)[0][0]


@dataclass(slots=True)
class Summary:
    """What records have in common."""

    num_records: int = 0
    num_frames: int = 0  # of the first feature list that has most steps
    context: dict[str, KeyCounts] = field(default_factory=dict)
    lists: dict[str, KeyCounts] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Adds a record."""
        self.num_records += 1
        for key, values in example.features.items():
            self.context.setdefault(key, KeyCounts()).add(values)
        longest = 0
        for key in example.message.feature_lists.feature_list:
            # One step stands for all: whether they are alike is found when they are decoded.
            if (steps := example.num_steps(key)) and (first := example.first_step(key)) is not None:
                self.lists.setdefault(key, KeyCounts()).add(first, steps)
                longest = max(longest, steps)
        self.num_frames += longest

    @property
    def level(self) -> Level:
        """What a record holds."""
        if not self.lists:
            return "video"
        return "segment" if SEGMENT_START in self.context else "frame"

    @property
    def features(self) -> dict[str, KeyCounts]:
        """The features, by key."""
        kinds = ("float32",) if self.level == "video" else ("float32", "bytes")
        found = self.context if self.level == "video" else self.lists
        named = {
            key: counts
            for key, counts in found.items()
            if counts.kind in kinds and (counts.width or 0) > 1 and key not in RATINGS
        }
        return {key: counts for key, counts in named.items() if sum(counts.kinds.values()) == self.num_records}

    @property
    def id_key(self) -> str | None:
        """The key of the id; None where none is clear."""
        bytes_keys = [key for key, counts in self.context.items() if counts.kind == "bytes"]
        likely = [key for key in bytes_keys if key.rpartition("/")[2] in (ID, "video_id", "data_id")]
        return next((key for key in (*ID_KEYS, *likely) if key in bytes_keys), None)

    @property
    def labels_key(self) -> str | None:
        """The key of the labels; None where none is clear."""
        integers = [key for key, counts in self.context.items() if counts.kind == "int64"]
        likely = [key for key in integers if "label" in key and key not in RATINGS]
        wanted = (SEGMENT_LABELS,) if self.level == "segment" else (LABELS_KEY, *likely)
        return next((key for key in wanted if key in integers), None)

    def names(self) -> Mapping[str, str]:
        """Short names of the features, by key: a key that is a path is called after its first part."""
        short = {key: key.partition("/")[0].lower() if "/" in key else key for key in self.features}
        return short if len(set(short.values())) == len(short) else {key: key for key in short}
