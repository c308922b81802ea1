"""NetVLAD: what a cluster's frames differ from its centre by, summed over the video.

    V_dk = sum_t a_tk (x_td - c_dk),   each cluster's column at length 1, then all of them together

The hidden matrix at the published widths, 1024 * 256 + 128 * 128 = 278,528 times 1024, has 285 M weights.

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), NetVLAD; Arandjelovic et al. (2016), "NetVLAD"
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.pooling import Clustered, SoftAssignment
from models.layers import Sizes, l2_normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class NetVladConfig(Clustered):
    """Settings of NetVLAD; published with 256 clusters of rgb, 128 of audio."""

    kind: Literal["netvlad"] = "netvlad"
    context_gating: bool = True


class Vlad(nn.Module):
    """[B, T, D] -> [B, D K]. Centres c ~ N(0, 1 / sqrt(D)), apart from the assignments' weights."""

    def __init__(
        self, config: Clustered, name: str, sizes: Sizes, generator: torch.Generator | None, *, residual: bool = True
    ) -> None:
        """Draws the weights of the feature `name` from `generator`; without `residual`, all centres are 0 for good."""
        super().__init__()
        inputs, clusters = sizes.features[name], config.clusters[name]
        self.assignment = SoftAssignment(config, inputs, clusters, generator)
        self.centres_1DK: nn.Parameter | None = None
        if residual:
            centres = torch.empty(1, inputs, clusters).normal_(std=1 / math.sqrt(inputs), generator=generator)
            self.centres_1DK = nn.Parameter(centres)
        self.width = inputs * clusters

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Sums of residuals, of length 1."""
        shares_BTK = self.assignment(x_BTD, mask_BT)
        vlad_BDK = (x_BTD.transpose(1, 2) @ shares_BTK).float()
        if self.centres_1DK is not None:
            vlad_BDK = vlad_BDK - shares_BTK.sum(dim=1, keepdim=True) * self.centres_1DK
        return l2_normalize(l2_normalize(vlad_BDK, dim=1).flatten(1), dim=1)
