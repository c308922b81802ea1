"""What models that pool frames by clusters share: soft assignments, a pooling for each feature, the hidden layer.

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         K clusters   H hidden units   P values of a pooled video
Source   WILLOW (2017), frame_level_models.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ranges import Count
from models.config import check_per_feature
from models.frame.parts.frame_model import FrameModelConfig
from models.frame.parts.frames import FrameBatchNorm, padded
from models.inputs import Sizes
from models.layers import BatchNorm, normal_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusteredConfig(FrameModelConfig):
    """Settings of a model that pools the frames of each feature by that feature's clusters."""

    # Number of clusters of each feature, by feature name; every feature of the data needs one.
    clusters: Mapping[str, Count]
    hidden: Count = 1024  # number of units of the layer after the pooling
    relu: bool = False  # true: BatchNorm and relu6 follow the layer after the pooling
    # true: the units of the layer after the pooling are multiplied by gates that are computed from all of them.
    context_gating: bool = False
    # true: BatchNorm on the frames, the cluster assignments, the layer after the pooling and its gates; false: the
    # layers have biases instead.
    batch_norm: bool = True


class SoftAssignment(nn.Module):
    """The share of each frame that belongs to each cluster: softmax(BatchNorm(x W)), or softmax(x W + b).

    W and b are drawn from N(0, 1 / sqrt(D)).
    """

    def __init__(self, config: ClusteredConfig, inputs: int, clusters: int, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        std = 1 / math.sqrt(inputs)
        self.linear = normal_linear(inputs, clusters, generator, std=std, bias_std=None if config.batch_norm else std)
        self.norm = FrameBatchNorm(clusters, momentum=config.batch_norm_momentum) if config.batch_norm else None

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, K] float32; the shares of a frame sum to 1, those of padding are 0."""
        scores_BTK = self.linear(x_BTD).float()
        if self.norm is not None:
            scores_BTK = self.norm(scores_BTK, mask_BT)
        return padded(scores_BTK.softmax(dim=-1), mask_BT)


class ContextGating(nn.Module):
    """Gates by which hidden units weigh each other: h * sigmoid(BatchNorm(h W)), or h * sigmoid(h W + b).

    W and b are drawn from N(0, 1 / sqrt(H)).
    """

    def __init__(self, config: ClusteredConfig, units: int, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        std = 1 / math.sqrt(units)
        self.linear = normal_linear(units, units, generator, std=std, bias_std=None if config.batch_norm else std)
        self.norm = _norm(config, units) if config.batch_norm else nn.Identity()

    def forward(self, x_BH: Tensor) -> Tensor:
        """[B, H] -> [B, H]."""
        return x_BH * torch.sigmoid(self.norm(self.linear(x_BH).float()))


class Hidden(nn.Module):
    """The layer after the pooling, h = x W + b or relu6(BatchNorm(x W)), and context gating if the settings say so.

    W is drawn from N(0, 1 / sqrt(K)) with K the largest number of clusters of a feature, b from N(0, 0.01).
    """

    def __init__(self, config: ClusteredConfig, inputs: int, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        normed = config.relu and config.batch_norm
        std = 1 / math.sqrt(max(config.clusters.values()))
        self.linear = normal_linear(inputs, config.hidden, generator, std=std, bias_std=None if normed else 0.01)
        self.norm = _norm(config, config.hidden) if normed else nn.Identity()
        self.relu = config.relu
        self.gating = ContextGating(config, config.hidden, generator) if config.context_gating else nn.Identity()

    def forward(self, x_BP: Tensor) -> Tensor:
        """[B, P] -> [B, H]."""
        x_BH = self.norm(self.linear(x_BP).float())
        hidden_BH: Tensor = self.gating(F.relu6(x_BH) if self.relu else x_BH)
        return hidden_BH


class PerFeature(nn.Module):
    """BatchNorm of the frames -> a pooling for each feature -> concatenation -> hidden layer."""

    def __init__(
        self,
        pooling: Callable[[Any, str, Sizes, torch.Generator | None], Any],
        config: ClusteredConfig,
        sizes: Sizes,
        generator: torch.Generator | None,
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator.

        Args:
            pooling: makes the module of one feature from the settings and the feature's name. The module's
                forward(x_BTD, mask_BT) gives [B, P], and its attribute `width` is P.
            config: of the model.
            sizes: of the data.
            generator: of the weights.

        Raises:
            ValueError: `clusters` does not name exactly the features of the data.
        """
        super().__init__()
        check_per_feature("clusters", config.clusters, sizes)
        self.widths = list(sizes.features.values())
        self.width = config.hidden
        self.norm = FrameBatchNorm(sizes.width, momentum=config.batch_norm_momentum) if config.batch_norm else None
        poolings = [pooling(config, name, sizes, generator) for name in sizes.features]
        self.poolings = nn.ModuleList(poolings)
        self.hidden = Hidden(config, sum(pooling.width for pooling in poolings), generator)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames [B, T, D] and their mask -> hidden units [B, H]."""
        if self.norm is not None:
            x_BTD = self.norm(x_BTD, mask_BT)
        parts = torch.split(x_BTD, self.widths, dim=-1)
        pooled = [pooling(part, mask_BT) for pooling, part in zip(self.poolings, parts, strict=True)]
        hidden_BH: Tensor = self.hidden(torch.cat(pooled, dim=-1))
        return hidden_BH


def _norm(config: ClusteredConfig, units: int) -> BatchNorm:
    return BatchNorm(units, eps=1e-3, momentum=config.batch_norm_momentum)
