"""NetFV: a Fisher vector, the first two moments of the frames about each cluster's centre, in units of its deviation.

    fv1 = sum_t a (x - mu) / sigma,   each cluster's column scaled to length 1, then all together
    fv2 = sum_t a ((x - mu)^2 / sigma^2 - 1),   all together scaled to length 1

Shapes   B videos in the batch   T frames of the longest   D features of a frame   K clusters
Source   WILLOW (2017), NetFV
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

COUPLING = 0.01  # the source's fv_coupling_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class NetFvConfig(ClusteredConfig):
    """Settings of NetFV. WILLOW has 128 clusters for rgb and 64 for audio."""

    kind: Literal["netfv"] = "netfv"
    # true: the cluster centres are 0.01 times the weights of the cluster assignments; false: they are weights of their
    # own.
    coupled: bool = False
    context_gating: bool = True


class FisherVector(nn.Module):
    """First and second moments.

    mu is drawn from N(0, 1 / sqrt(D)), and sigma = w^2 + 1e-6 with w from N(1, 1 / sqrt(D)); both are separate from the
    assignments' weights.

    NOTE: as in the source, the columns of fv2 keep their lengths, and only fv2 as a whole is normalised.
    """

    def __init__(self, config: NetFvConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights of the pooling of feature `name`; from torch's global generator for None."""
        super().__init__()
        inputs, clusters = sizes.features[name], config.clusters[name]
        std = 1 / math.sqrt(inputs)
        self.assignment = SoftAssignment(config, inputs, clusters, generator)
        self.centres_1DK: nn.Parameter | None = None
        if not config.coupled:
            self.centres_1DK = nn.Parameter(torch.empty(1, inputs, clusters).normal_(std=std, generator=generator))
        self.root_sigma_1DK = nn.Parameter(torch.empty(1, inputs, clusters).normal_(1, std, generator=generator))
        self.width = 2 * inputs * clusters

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames of one feature [B, T, D] and their mask -> [B, 2 D K]."""
        a_BTK = self.assignment(x_BTD, mask_BT)
        count_B1K = a_BTK.sum(dim=1, keepdim=True)
        sum_BDK = (x_BTD.transpose(1, 2) @ a_BTK).float()
        squares_BDK = (x_BTD.square().transpose(1, 2) @ a_BTK).float()
        mu_1DK = COUPLING * self.assignment.linear.weight.T[None] if self.centres_1DK is None else self.centres_1DK
        sigma_1DK = self.root_sigma_1DK.square() + 1e-6
        first_BDK = (sum_BDK - count_B1K * mu_1DK) / sigma_1DK
        second_BDK = (squares_BDK + count_B1K * mu_1DK.square() - 2 * sum_BDK * mu_1DK) / sigma_1DK.square() - count_B1K
        first_BP = l2_normalize(l2_normalize(first_BDK, dim=1).flatten(1), dim=1)
        return torch.cat([first_BP, l2_normalize(second_BDK.flatten(1), dim=1)], dim=1)
