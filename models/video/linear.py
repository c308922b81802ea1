"""The linear classifier that is fitted in closed form, by ridge regression in one pass over the training videos.

It is a logistic regression by its shape; tuner/training/contrastive/linear.py fits it by models/contrastive/ridge.py,
no optimizer does.

Source   lidalei/youtube-8m, LinearClassifier
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from models.layers import Sizes, Statistics
from models.video.logistic import Logistic, LogisticConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """Settings of the linear classifier."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "video"

    kind: Literal["linear"] = "linear"
    # Of the squared weights, in units of the mean eigenvalue of the standardised features' centred X'X, so that one
    # suits any number of videos; published: one of 1e-6, 1e-5, ... 1e3 on X'X itself.
    penalty: float = 0.1

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"penalty must be positive and finite, but got {self.penalty}")


def before_its_fit(
    config: LinearConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
) -> Logistic:
    """The model that will take the weights."""
    return Logistic(LogisticConfig(), sizes, statistics, generator)
