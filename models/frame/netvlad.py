"""NetVLAD: for each cluster, the sum over the video of the differences between frames and the cluster's centre.

    V_dk = sum_t a_tk (x_td - c_dk),   each cluster's column scaled to length 1, then all together

With the clusters of WILLOW the hidden matrix, (1024 * 256 + 128 * 128) x 1024, has 285 M weights.

Shapes   B videos in the batch   T frames of the longest   D features of a frame   K clusters
Source   WILLOW (2017), NetVLAD; Arandjelovic et al. (2016), "NetVLAD"
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.parts.clusters import ClusteredConfig, SoftAssignment
from models.inputs import Sizes
from models.layers import l2_normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class NetVladConfig(ClusteredConfig):
    """Settings of NetVLAD. WILLOW has 256 clusters for rgb and 128 for audio."""

    kind: Literal["netvlad"] = "netvlad"
    context_gating: bool = True


class Vlad(nn.Module):
    """Sums of residuals. The centres, drawn from N(0, 1 / sqrt(D)), are separate from the assignments' weights."""

    def __init__(
        self,
        config: ClusteredConfig,
        name: str,
        sizes: Sizes,
        generator: torch.Generator | None,
        *,
        residual: bool = True,
    ) -> None:
        """Draws the weights of the pooling of feature `name`; without `residual`, all centres are fixed at 0."""
        super().__init__()
        inputs, clusters = sizes.features[name], config.clusters[name]
        self.assignment = SoftAssignment(config, inputs, clusters, generator)
        self.centres_1DK: nn.Parameter | None = None
        if residual:
            centres = torch.empty(1, inputs, clusters).normal_(std=1 / math.sqrt(inputs), generator=generator)
            self.centres_1DK = nn.Parameter(centres)
        self.width = inputs * clusters

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames of one feature [B, T, D] and their mask -> [B, D K] of length 1."""
        shares_BTK = self.assignment(x_BTD, mask_BT)
        vlad_BDK = (x_BTD.transpose(1, 2) @ shares_BTK).float()
        if self.centres_1DK is not None:
            vlad_BDK = vlad_BDK - shares_BTK.sum(dim=1, keepdim=True) * self.centres_1DK
        return l2_normalize(l2_normalize(vlad_BDK, dim=1).flatten(1), dim=1)
