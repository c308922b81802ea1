"""What a video-level record holds: names, widths and the number of classes of YouTube-8M (2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

VIDEO_FEATURES: Mapping[str, int] = {"mean_rgb": 1024, "mean_audio": 128}
NUM_CLASSES = 3862
ID_KEYS = ("id", "video_id")  # the 2018 release, and those before it; the first one present counts
LABELS_KEY = "labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The features of every video, in the order of their columns, and the classes that its labels index."""

    features: Mapping[str, int] = field(default_factory=lambda: dict(VIDEO_FEATURES))  # width by name
    num_classes: int = NUM_CLASSES

    def __post_init__(self) -> None:
        """Checks the names and sizes.

        Raises:
            ValueError: a rule is broken; says which, and the value.
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

    @property
    def width(self) -> int:
        """D, the sum of the features' widths."""
        return sum(self.features.values())

    @property
    def columns(self) -> dict[str, slice]:
        """The columns of each feature in features_ND."""
        stops = accumulate(self.features.values())
        return {
            name: slice(stop - width, stop) for (name, width), stop in zip(self.features.items(), stops, strict=True)
        }
