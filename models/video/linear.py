"""The linear classifier that is fitted in closed form, by ridge regression in one pass over the training videos.

It has the layers of a logistic regression. No optimizer trains it: tuner/training/linear.py computes its
weights with models/ridge.py.

Source   lidalei/youtube-8m, LinearClassifier
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from data.ranges import Range
from models.config import ModelConfig
from models.inputs import Sizes, Statistics
from models.video.logistic import Logistic, LogisticConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig(ModelConfig):
    """Settings of the ridge regression of the labels on video-level features, which is solved in closed form."""

    level: ClassVar[str] = "video"

    kind: Literal["linear"] = "linear"
    # Factor of the penalty on the squared weights, relative to the mean eigenvalue of X'X (X: the standardised features
    # of the training videos), so that one value suits any number of videos. lidalei/youtube-8m tries 1e-6, 1e-5, ...
    # 1e3 as absolute factors.
    penalty: Annotated[float, Range(1e-12, 1e12)] = 0.1


def unfitted(
    config: LinearConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
) -> Logistic:
    """The model before the fit sets its weights."""
    return Logistic(LogisticConfig(), sizes, statistics, generator)
