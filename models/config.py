"""The settings that every model has, and the checks that several models make of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.inputs import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Base of every model's settings. A subclass gives `level`, and `kind` as a Literal with its default."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str]  # "video": the model takes a row of features for each video; "frame": frames and their mask

    kind: str  # the kind of model


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


def check_positive(config: Any, *names: str) -> None:
    """Refuses numbers below 1, also in settings that hold a number for each feature.

    Raises:
        ValueError: says which setting, and its value.
    """
    for name in names:
        value = getattr(config, name)
        for path, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if number < 1:
                raise ValueError(f"{name}{path and '.' + path} must be at least 1, but got {number}")


def check_batch_norm_momentum(momentum: float) -> None:
    """Refuses a weight of a new batch outside (0, 1].

    Raises:
        ValueError: says the value.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"batch_norm_momentum must be in (0, 1], but got {momentum}")


def check_dropout(dropout: float) -> None:
    """Refuses a probability outside [0, 1).

    Raises:
        ValueError: says the value.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), but got {dropout}")
