"""Soft bag of frames: a frame's one vote is shared among the clusters of each feature, and the shares are summed.

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), SoftDbofModel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.pooling import Clustered, SoftAssignment
from models.layers import Sizes, l2_normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftDbofConfig(Clustered):
    """Settings of the soft bag of frames; published with 8000 clusters of rgb, 1000 of audio."""

    kind: Literal["soft_dbof"] = "soft_dbof"
    maximum: bool = False  # beside the sum of the shares their maximum over the frames


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
