"""NetFV: a Fisher vector, the first two moments of each cluster's frames about its centre, in units of its deviation.

    fv1 = sum_t a (x - mu) / sigma,   each cluster's column at length 1, then all of them together
    fv2 = sum_t a ((x - mu)^2 / sigma^2 - 1),   all of them together at length 1

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), NetFV
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.pooling import Clustered, SoftAssignment
from models.layers import Sizes, l2_normalize

COUPLING = 0.01  # published fv_coupling_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class NetFvConfig(Clustered):
    """Settings of NetFV; published with 128 clusters of rgb, 64 of audio."""

    kind: Literal["netfv"] = "netfv"
    coupled: bool = False  # the centres are 0.01 times the weights of the assignments; else weights of their own
    context_gating: bool = True


class FisherVector(nn.Module):
    """[B, T, D] -> [B, 2 D K].

    mu ~ N(0, 1 / sqrt(D)), sigma = w^2 + 1e-6 with w ~ N(1, 1 / sqrt(D)), both apart from the assignments' weights.

    NOTE: as published, fv2's columns keep their lengths, and only the whole is normalised.
    """

    def __init__(self, config: NetFvConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights of the feature `name` from `generator`."""
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
        """Moments of each cluster's frames."""
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
