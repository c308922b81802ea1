"""Soft bag of frames: a frame's one vote is shared among the clusters of each feature, and the shares are summed.

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), SoftDbofModel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .heads import HeadConfig
from .layers import NormalizeKind, Sizes, l2_normalize
from .pooling import Clustered, SoftAssignment, check


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftDbofConfig:
    """Settings of the soft bag of frames."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "frame"

    kind: Literal["soft_dbof"] = "soft_dbof"
    normalize: NormalizeKind = "l2"  # of a frame; standard: by the training frames' mean and variance
    clusters: Mapping[str, int]  # of each feature, by name (published: 8000 rgb, 1000 audio)
    maximum: bool = False  # beside the sum of the shares their maximum over the frames
    hidden: int = 1024  # units of the layer after the pooling
    relu: bool = False  # BatchNorm and relu6 after the hidden layer
    context_gating: bool = False
    batch_norm: bool = True  # else biases
    batch_norm_momentum: float = 0.1  # weight of a new batch in the running statistics; published: 0.001
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self)


class SoftCount(nn.Module):
    """Sum of the soft assignments over the frames at length 1; with `maximum`, their maximum at length 1 beside it."""

    def __init__(
        self, config: Clustered, name: str, sizes: Sizes, generator: torch.Generator | None, *, maximum: bool = False
    ) -> None:
        """Draws the weights of the feature `name` from `generator`."""
        super().__init__()
        clusters = config.clusters[name]
        self.assignment = SoftAssignment(config, sizes.features[name], clusters, generator)
        self.maximum = maximum
        self.width = clusters * (2 if maximum else 1)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, D] -> [B, K] or [B, 2 K]."""
        shares_BTK = self.assignment(x_BTD, mask_BT)
        counts_BK = l2_normalize(shares_BTK.sum(dim=1), dim=1)
        if not self.maximum:
            return counts_BK
        return torch.cat([counts_BK, l2_normalize(shares_BTK.amax(dim=1), dim=1)], dim=1)


def soft_count(config: SoftDbofConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> SoftCount:
    """The pooling of one feature."""
    return SoftCount(config, name, sizes, generator, maximum=config.maximum)
