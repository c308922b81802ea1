"""NeXtVLAD: NetVLAD on groups of an expanded frame, each weighed by an attention of its own.

    x -> expanded, G groups of E D / G;   a_tgk = sigmoid(attention)_tg softmax_k(BatchNorm(expanded W))_tgk
    V_dk = sum_tg a_tgk (x_tgd - c_dk),   each cluster's column at length 1, then BatchNorm

    a pooling for each feature -> dropout -> hidden layer -> BatchNorm -> squeeze and excitation -> head

79.2 M parameters at 112 and 56 clusters, 8 and 4 groups, a logistic head and 3,862 classes: the published "79M".

Shapes   B videos   T frames of the longest of them   D features of a frame   E expansion   G groups   K clusters
Source   Lin et al. (2018), "NeXtVLAD"; linrongc/youtube-8m
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.frame.frame_model import FrameModelConfig
from models.frame.frames import FrameBatchNorm, padded
from models.layers import BatchNorm, Dropout, Sizes, check_per_feature, l2_normalize, normal_linear, xavier_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class NeXtVladConfig(FrameModelConfig):
    """Settings of NeXtVLAD."""

    positive: ClassVar[tuple[str, ...]] = ("clusters", "groups", "expansion", "hidden", "gating_reduction")

    kind: Literal["nextvlad"] = "nextvlad"
    clusters: Mapping[str, int]  # of each feature, by name (published: 128 rgb, 64 audio)
    groups: Mapping[str, int]  # likewise (published: 8 rgb, 4 audio); they divide expansion times the feature's width
    expansion: int = 2  # a frame is made so many times as wide
    hidden: int = 2048  # units of the layer after the pooling
    gating_reduction: int = 8  # the gates of the hidden units come from so many times fewer
    dropout: float = 0.5  # probability of zeroing a pooled value, in training only

    def __post_init__(self) -> None:
        """Checks the ranges."""
        FrameModelConfig.__post_init__(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), but got {self.dropout}")
        if self.hidden < self.gating_reduction:
            raise ValueError(
                f"gating_reduction must not be above hidden = {self.hidden}, but got {self.gating_reduction}"
            )


class GroupedVlad(nn.Module):
    """[B, T, D] -> [B, E D / G * K]."""

    def __init__(self, config: NeXtVladConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights of the feature `name` from `generator`.

        Raises:
            ValueError: the groups do not divide the expanded width.
        """
        super().__init__()
        inputs, self.groups, clusters = sizes.features[name], config.groups[name], config.clusters[name]
        expanded = config.expansion * inputs
        if expanded % self.groups:
            raise ValueError(
                f"groups.{name} must divide expansion times the feature's width, {expanded}, but got {self.groups}"
            )
        depth, std = expanded // self.groups, 1 / math.sqrt(expanded)
        self.expand = xavier_linear(inputs, expanded, generator)
        self.attention = xavier_linear(expanded, self.groups, generator)
        self.assignment = normal_linear(expanded, self.groups * clusters, generator, std=std)
        self.assignment_norm = FrameBatchNorm(self.groups * clusters, momentum=config.batch_norm_momentum)
        self.centres_1DK = nn.Parameter(torch.empty(1, depth, clusters).normal_(std=std, generator=generator))
        self.width = depth * clusters
        self.norm = BatchNorm(self.width, eps=1e-3, momentum=config.batch_norm_momentum)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Sums of residuals of all groups."""
        x_BTD = self.expand(x_BTD)
        attention_BTG = padded(torch.sigmoid(self.attention(x_BTD).float()), mask_BT)
        scores_BTC = self.assignment_norm(self.assignment(x_BTD).float(), mask_BT)
        shares_BTGK = torch.unflatten(scores_BTC, 2, (self.groups, -1)).softmax(dim=-1) * attention_BTG[..., None]
        shares_BSK = shares_BTGK.flatten(1, 2)  # S = T G: a group of a frame after the other
        groups_BSD = torch.unflatten(x_BTD, 2, (self.groups, -1)).flatten(1, 2)
        vlad_BDK = (groups_BSD.transpose(1, 2) @ shares_BSK.to(groups_BSD.dtype)).float()
        vlad_BDK = vlad_BDK - shares_BSK.sum(dim=1, keepdim=True) * self.centres_1DK
        pooled_BP: Tensor = self.norm(l2_normalize(vlad_BDK, dim=1).flatten(1))
        return pooled_BP


class NeXtVlad(nn.Module):
    """[B, T, D] -> [B, H]."""

    def __init__(self, config: NeXtVladConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`.

        Raises:
            ValueError: clusters or groups are not those of the data's features, or groups do not divide a width.
        """
        super().__init__()
        check_per_feature("clusters", config.clusters, sizes)
        check_per_feature("groups", config.groups, sizes)
        self.widths = list(sizes.features.values())
        self.width = config.hidden
        poolings = [GroupedVlad(config, name, sizes, generator) for name in sizes.features]
        self.poolings = nn.ModuleList(poolings)
        self.dropout = Dropout(config.dropout)
        pooled = sum(pooling.width for pooling in poolings)
        self.hidden = xavier_linear(pooled, config.hidden, generator, bias=False)
        self.norm = BatchNorm(config.hidden, eps=1e-3, momentum=config.batch_norm_momentum)
        squeezed = config.hidden // config.gating_reduction
        self.squeeze = xavier_linear(config.hidden, squeezed, generator, bias=False)
        self.squeeze_norm = BatchNorm(squeezed, eps=1e-3, momentum=config.batch_norm_momentum)
        self.excite = xavier_linear(squeezed, config.hidden, generator)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames -> gated hidden units."""
        parts = torch.split(x_BTD, self.widths, dim=-1)
        pooled = [pooling(part, mask_BT) for pooling, part in zip(self.poolings, parts, strict=True)]
        hidden_BH = self.norm(self.hidden(self.dropout(torch.cat(pooled, dim=-1))).float())
        squeezed_BS = F.relu(self.squeeze_norm(self.squeeze(hidden_BH).float()))
        return hidden_BH * torch.sigmoid(self.excite(squeezed_BS).float())
