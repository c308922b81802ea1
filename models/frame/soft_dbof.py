"""Soft bag of frames: a frame divides one vote among the clusters of each feature, and the shares are summed.

Shapes   B videos in the batch   T frames of the longest   D features of a frame   K clusters
Source   WILLOW (2017), SoftDbofModel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.parts.clusters import ClusteredConfig, SoftAssignment
from models.inputs import Sizes
from models.layers import l2_normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftDbofConfig(ClusteredConfig):
    """Settings of the soft bag of frames. WILLOW has 8000 clusters for rgb and 1000 for audio."""

    kind: Literal["soft_dbof"] = "soft_dbof"
    # true: the largest share of each cluster over the frames is used beside the sum of its shares.
    maximum: bool = False


class SoftCount(nn.Module):
    """Sum of the soft assignments over the frames, and with `maximum` their maximum; each scaled to length 1."""

    def __init__(
        self,
        config: ClusteredConfig,
        name: str,
        sizes: Sizes,
        generator: torch.Generator | None,
        *,
        maximum: bool = False,
    ) -> None:
        """Draws the weights of the pooling of feature `name`; from torch's global generator for None."""
        super().__init__()
        clusters = config.clusters[name]
        self.assignment = SoftAssignment(config, sizes.features[name], clusters, generator)
        self.maximum = maximum
        self.width = clusters * (2 if maximum else 1)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames of one feature [B, T, D] and their mask -> [B, K], with `maximum` [B, 2 K]."""
        shares_BTK = self.assignment(x_BTD, mask_BT)
        counts_BK = l2_normalize(shares_BTK.sum(dim=1), dim=1)
        if not self.maximum:
            return counts_BK
        return torch.cat([counts_BK, l2_normalize(shares_BTK.amax(dim=1), dim=1)], dim=1)


def soft_count(config: SoftDbofConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> SoftCount:
    """The pooling of the feature `name`."""
    return SoftCount(config, name, sizes, generator, maximum=config.maximum)
