"""Gated bag of frames: a soft bag of frames whose counts are gated by the maxima of the assignments over the frames.

    s = sum_t a_t,   m = max_t a_t scaled to length 1,   s * sigmoid(BatchNorm(m D1 D2)) scaled to length 1

Shapes   B videos in the batch   T frames of the longest   D features of a frame   K clusters
Source   WILLOW (2017), GatedDbofModel
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.parts.clusters import ClusteredConfig, SoftAssignment
from models.frame.soft_dbof import SoftCount
from models.inputs import Sizes
from models.layers import BatchNorm, l2_normalize, normal_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDbofConfig(ClusteredConfig):
    """Settings of the gated bag of frames. WILLOW has 4096 clusters for rgb and 512 for audio."""

    kind: Literal["gated_dbof"] = "gated_dbof"


class GatedCount(nn.Module):
    """Soft counts times their gates, scaled to length 1; D1 [K, D] and D2 [D, K] from N(0, 1 / sqrt(fan_in))."""

    def __init__(self, config: GatedDbofConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights of the pooling of feature `name`; from torch's global generator for None."""
        super().__init__()
        inputs, clusters = sizes.features[name], config.clusters[name]
        self.assignment = SoftAssignment(config, inputs, clusters, generator)
        std = 1 / math.sqrt(inputs)
        self.down = normal_linear(clusters, inputs, generator, std=1 / math.sqrt(clusters))
        self.up = normal_linear(inputs, clusters, generator, std=std, bias_std=None if config.batch_norm else std)
        momentum = config.batch_norm_momentum
        self.norm = BatchNorm(clusters, eps=1e-3, momentum=momentum) if config.batch_norm else nn.Identity()
        self.width = clusters

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames of one feature [B, T, D] and their mask -> [B, K]."""
        shares_BTK = self.assignment(x_BTD, mask_BT)
        gates_BK = self.up(self.down(l2_normalize(shares_BTK.amax(dim=1), dim=1))).float()
        return l2_normalize(torch.sigmoid(self.norm(gates_BK)) * shares_BTK.sum(dim=1), dim=1)


def gated_count(
    config: GatedDbofConfig, name: str, sizes: Sizes, generator: torch.Generator | None
) -> GatedCount | SoftCount:
    """The pooling of the feature `name`: as in WILLOW, only the widest feature is gated (rgb, not audio)."""
    widest = max(sizes.features, key=lambda feature: sizes.features[feature])
    return (GatedCount if name == widest else SoftCount)(config, name, sizes, generator)
