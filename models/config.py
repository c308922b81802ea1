"""The settings that every model has, and a check that several models make of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.ranges import check_ranges
from models.inputs import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Base of every model's settings. A subclass gives `level`, and `kind` as a Literal with its default."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str]  # "video": the model takes a row of features for each video; "frame": frames and their mask

    kind: str  # the kind of model

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def check_per_feature(name: str, given: Mapping[str, Any], sizes: Sizes) -> None:
    """Refuses a setting that does not have exactly one value for each feature of the data.

    Raises:
        ValueError: says which features are missing, and which names are not a feature.
    """
    missing = [feature for feature in sizes.features if feature not in given]
    unknown = [feature for feature in given if feature not in sizes.features]
    if missing or unknown:
        raise ValueError(
            f"{name} must name every feature of the data once ({', '.join(sizes.features)}), but "
            + " and ".join(
                f"{', '.join(names)} {what}"
                for names, what in ((missing, "is missing"), (unknown, "is not a feature"))
                if names
            )
        )
