"""NetVLAD: what a cluster's frames differ from its centre by, summed over the video.

    V_dk = sum_t a_tk (x_td - c_dk),   each cluster's column at length 1, then all of them together

The hidden matrix at the published widths, 1024 * 256 + 128 * 128 = 278,528 times 1024, has 285 M weights.

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), NetVLAD; Arandjelovic et al. (2016), "NetVLAD"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .heads import HeadConfig
from .layers import NormalizeKind, Sizes, l2_normalize
from .pooling import Clustered, SoftAssignment, check


@dataclass(frozen=True, slots=True, kw_only=True)
class NetVladConfig:
    """Settings of NetVLAD."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "frame"

    kind: Literal["netvlad"] = "netvlad"
    normalize: NormalizeKind = "l2"  # of a frame; standard: by the training frames' mean and variance
    clusters: Mapping[str, int]  # of each feature, by name (published: 256 rgb, 128 audio)
    hidden: int = 1024  # units of the layer after the pooling
    relu: bool = False  # BatchNorm and relu6 after the hidden layer
    context_gating: bool = True
    batch_norm: bool = True  # else biases
    batch_norm_momentum: float = 0.1  # weight of a new batch in the running statistics; published: 0.001
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self)


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
