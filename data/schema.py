"""What a record holds: names, widths and the number of classes of YouTube-8M (2018), at each of its three levels.

video     a tf.train.Example: a list of floats for each feature
frame     a tf.train.SequenceExample: a list of frames for each feature, one byte for each value of a frame; or floats,
          which are quantised to such bytes when they are read
segment   as `frame`, with ratings of some classes for some segments of SEGMENT_FRAMES frames; an example is a segment
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from data.ranges import COUNT, is_whole

Level = Literal["video", "frame", "segment"]

VIDEO_FEATURES: Mapping[str, int] = {"mean_rgb": 1024, "mean_audio": 128}
FRAME_FEATURES: Mapping[str, int] = {"rgb": 1024, "audio": 128}
FEATURES: Mapping[Level, Mapping[str, int]] = {
    "video": VIDEO_FEATURES,
    "frame": FRAME_FEATURES,
    "segment": FRAME_FEATURES,
}
NUM_CLASSES = 3862
MAX_FRAMES = 300  # of a video, one per second; later frames are left out
MAX_BAD_RECORDS = 100  # that may be left out of a split, where bad records may be left out
SEGMENT_FRAMES = 5  # of a segment, from the second at which it starts

# A frame's byte q stands for q * DEQUANTISE_SCALE + DEQUANTISE_SHIFT, from -1.992 to 2.008 (google/youtube-8m,
# utils.Dequantize with max 2 and min -2). The shift of 4/512 is half a step: a writer that rounds down maps values to q
# whose middle it is. Google's own extractor rounds to nearest instead, so its values are 0.0078 too high on average.
DEQUANTISE_SCALE: Final = 4 / 255
DEQUANTISE_SHIFT: Final = 4 / 512 - 2

ID = "id"
ID_KEYS = (ID, "video_id")  # of the 2018 release, and of older ones; the first that a record has counts
LABELS_KEY = "labels"
# The ratings of a video's segments, three lists of equal length: the second at which the segment starts, the class that
# was rated, and the score in [0, 1].
RATINGS = SEGMENT_START, SEGMENT_LABELS, SEGMENT_SCORES = "segment_start_times", "segment_labels", "segment_scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The features of every video, in the order of their columns, and the number of classes of its labels."""

    features: Mapping[str, int] = field(default_factory=lambda: dict(VIDEO_FEATURES))  # width by name
    num_classes: int = NUM_CLASSES
    level: Level = "video"
    max_frames: int = MAX_FRAMES  # of an example, at frame and segment level
    # The key in the records by what it stands for, where that is another: of ID, LABELS_KEY, a feature, one of RATINGS.
    keys: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the names and sizes.

        Raises:
            ValueError: a name or a size is not allowed.
        """
        if not self.features:
            raise ValueError("features must name at least one feature, but got none")
        for name, width in self.features.items():
            if width < 1:
                raise ValueError(f"the width of a feature must be at least 1, but got {name}={width}")
            if not name or name in (*ID_KEYS, LABELS_KEY):
                raise ValueError(f"a feature must not be called {name!r}: ids and labels are read anyway")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but got {self.num_classes}")
        if self.level not in FEATURES:
            raise ValueError(f"level must be one of {', '.join(FEATURES)}, but got {self.level!r}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, but got {self.max_frames}")
        known = [ID, LABELS_KEY, *self.features, *(RATINGS if self.level == "segment" else ())]
        for name, key in self.keys.items():
            if name not in known:
                raise ValueError(f"keys can name those of {', '.join(known)}, but got {name!r}")
            if not key:
                raise ValueError(f"the key of {name} must not be empty")
        used = [self.key(name) for name in known]
        for key in used:
            if used.count(key) > 1:
                raise ValueError(f"keys gives {key!r} two meanings")

    def key(self, name: str) -> str:
        """The key in the records of a feature, of LABELS_KEY or of one of RATINGS."""
        return self.keys.get(name, name)

    @property
    def id_keys(self) -> tuple[str, ...]:
        """The keys under which a record may have its id; the first one that it has counts."""
        return id_keys(self.keys)

    @property
    def width(self) -> int:
        """D, the sum of the features' widths."""
        return sum(self.features.values())

    @property
    def values_of_largest(self) -> int:
        """The largest number of values that one example can have."""
        frames = {"video": 1, "frame": self.max_frames, "segment": min(self.max_frames, SEGMENT_FRAMES)}
        return frames[self.level] * self.width

    @property
    def columns(self) -> dict[str, slice]:
        """The columns of each feature in features_ND or frames_FD."""
        stops = accumulate(self.features.values())
        return {
            name: slice(stop - width, stop) for (name, width), stop in zip(self.features.items(), stops, strict=True)
        }


def id_keys(keys: Mapping[str, str]) -> tuple[str, ...]:
    """The keys under which a record may have its id, by a mapping as `Schema.keys`."""
    return (keys[ID],) if ID in keys else ID_KEYS


def quantise(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns the byte of each value, rounded down; values beyond -2 and 2 become the lowest and the highest byte."""
    bytes_of: NDArray[np.uint8] = ((values.clip(-2, 2) + 2) * (1 / DEQUANTISE_SCALE)).astype(np.uint8)
    return bytes_of


def parse_key(text: str) -> tuple[str, str]:
    """Reads a key as commands take it: NAME=KEY.

    Raises:
        ValueError: the text has another form.
    """
    name, equals, key = text.partition("=")
    if not (name and equals and key):
        raise ValueError(f"{text!r} is not NAME=KEY, as in labels=clip/label/index")
    return name, key


def parse_feature(text: str) -> tuple[str, int]:
    """Reads a feature as commands take it: NAME=WIDTH.

    Raises:
        ValueError: the text has another form.
    """
    name, equals, width = text.partition("=")
    if not (name and equals and is_whole(width) and COUNT.holds(int(width))):
        raise ValueError(f"{text!r} is not NAME=WIDTH, as in mean_rgb=1024, with a width {COUNT}")
    return name, int(width)
