"""NeXtVLAD: NetVLAD on the groups of an expanded frame, each group weighed by its own attention.

    x -> expanded, G groups of E D / G;   a_tgk = sigmoid(attention)_tg softmax_k(BatchNorm(expanded W))_tgk
    V_dk = sum_tg a_tgk (x_tgd - c_dk),   each cluster's column scaled to length 1, then BatchNorm

    a pooling for each feature -> dropout -> hidden layer -> BatchNorm -> squeeze and excitation -> head

112 and 56 clusters, 8 and 4 groups, a logistic head and 3,862 classes give 79.2 M parameters: the "79M" of the paper.

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         E expansion   G groups   K clusters   H hidden units
Source   Lin et al. (2018), "NeXtVLAD"; linrongc/youtube-8m
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ranges import Count, Share
from models.config import check_per_feature
from models.frame.parts.frame_model import FrameModelConfig
from models.frame.parts.frames import FrameBatchNorm, padded
from models.inputs import Sizes
from models.layers import BatchNorm, Dropout, l2_normalize, normal_linear, xavier_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class NeXtVladConfig(FrameModelConfig):
    """Settings of NeXtVLAD."""

    kind: Literal["nextvlad"] = "nextvlad"
    # Number of clusters of each feature, by feature name; every feature of the data needs one (in the paper: 128 for
    # rgb, 64 for audio).
    clusters: Mapping[str, Count]
    # Number of groups of each feature, by feature name (in the paper: 8 for rgb, 4 for audio); must divide `expansion`
    # times the width of the feature.
    groups: Mapping[str, Count]
    expansion: Count = 2  # factor by which a linear layer widens each frame before it is divided into groups
    hidden: Count = 2048  # number of units of the layer after the pooling
    # Factor by which the bottleneck that computes the gates of the hidden units is narrower than `hidden`; at most
    # `hidden`.
    gating_reduction: Count = 8
    dropout: Share = 0.5  # probability with which each pooled value is set to 0, in training only

    def __post_init__(self) -> None:
        """Checks the ranges."""
        FrameModelConfig.__post_init__(self)
        if self.hidden < self.gating_reduction:
            raise ValueError(
                f"gating_reduction must not be above hidden = {self.hidden}, but got {self.gating_reduction}"
            )


class GroupedVlad(nn.Module):
    """The pooling of one feature."""

    def __init__(self, config: NeXtVladConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights of the pooling of feature `name`; from torch's global generator for None.

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
        """Frames of one feature [B, T, D] and their mask -> [B, E D / G * K]."""
        x_BTD = self.expand(x_BTD)
        attention_BTG = padded(torch.sigmoid(self.attention(x_BTD).float()), mask_BT)
        scores_BTC = self.assignment_norm(self.assignment(x_BTD).float(), mask_BT)
        shares_BTGK = torch.unflatten(scores_BTC, 2, (self.groups, -1)).softmax(dim=-1) * attention_BTG[..., None]
        shares_BSK = shares_BTGK.flatten(1, 2)  # S = T G: the groups of all frames, one after another
        groups_BSD = torch.unflatten(x_BTD, 2, (self.groups, -1)).flatten(1, 2)
        vlad_BDK = (groups_BSD.transpose(1, 2) @ shares_BSK.to(groups_BSD.dtype)).float()
        vlad_BDK = vlad_BDK - shares_BSK.sum(dim=1, keepdim=True) * self.centres_1DK
        pooled_BP: Tensor = self.norm(l2_normalize(vlad_BDK, dim=1).flatten(1))
        return pooled_BP


class NeXtVlad(nn.Module):
    """All features: a pooling for each -> dropout -> hidden layer -> BatchNorm -> squeeze and excitation."""

    def __init__(self, config: NeXtVladConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator.

        Raises:
            ValueError: `clusters` or `groups` does not name exactly the features of the data, or the groups do not
                divide an expanded width.
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
        """Normalised frames [B, T, D] and their mask -> gated hidden units [B, H]."""
        parts = torch.split(x_BTD, self.widths, dim=-1)
        pooled = [pooling(part, mask_BT) for pooling, part in zip(self.poolings, parts, strict=True)]
        hidden_BH = self.norm(self.hidden(self.dropout(torch.cat(pooled, dim=-1))).float())
        squeezed_BS = F.relu(self.squeeze_norm(self.squeeze(hidden_BH).float()))
        return hidden_BH * torch.sigmoid(self.excite(squeezed_BS).float())
