"""Deep bag of frames: every frame votes for many clusters, and the votes are pooled over the video.

    BatchNorm -> W1 -> BatchNorm -> activation -> maximum or mean over frames -> W2 -> BatchNorm -> activation -> head

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         K clusters   H hidden units
Source   google/youtube-8m, DbofModel
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ranges import Count
from models.frame.parts.frame_model import FrameModelConfig
from models.frame.parts.frames import FrameBatchNorm, masked_max, masked_mean
from models.inputs import Sizes
from models.layers import BatchNorm, normal_linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "relu6": F.relu6}
POOLINGS = {"max": masked_max, "average": masked_mean}


@dataclass(frozen=True, slots=True, kw_only=True)
class DbofConfig(FrameModelConfig):
    """Settings of the deep bag of frames. google/youtube-8m trains it on 30 random frames of each video."""

    kind: Literal["dbof"] = "dbof"
    clusters: Count = 8192  # number of units to which each frame is projected before the pooling
    hidden: Count = 1024  # number of units of the layer after the pooling
    # Whether the maximum or the average of each unit over the frames is kept.
    pooling: Literal["max", "average"] = "max"
    # Activation of both layers; google/youtube-8m had relu6 before 2019.
    activation: Literal["sigmoid", "relu6"] = "sigmoid"
    # true: BatchNorm on the frames and after both layers; false: the layers have biases instead.
    batch_norm: bool = True


class Dbof(nn.Module):
    """The two layers with the pooling between them.

    Weights and biases of W1 are drawn from N(0, 1 / sqrt(D)), weights of W2 from N(0, 1 / sqrt(K)), its biases from
    N(0, 0.01).
    """

    def __init__(self, config: DbofConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        self.width = config.hidden
        self.activation, self.pool = ACTIVATIONS[config.activation], POOLINGS[config.pooling]
        std, momentum = 1 / math.sqrt(sizes.width), config.batch_norm_momentum
        biases = (None, None) if config.batch_norm else (std, 0.01)
        self.clusters = normal_linear(sizes.width, config.clusters, generator, std=std, bias_std=biases[0])
        self.hidden = normal_linear(
            config.clusters, config.hidden, generator, std=1 / math.sqrt(config.clusters), bias_std=biases[1]
        )
        self.batch_norm = config.batch_norm
        if config.batch_norm:
            self.input_norm = FrameBatchNorm(sizes.width, momentum=momentum)
            self.cluster_norm = FrameBatchNorm(config.clusters, momentum=momentum)
            self.hidden_norm = BatchNorm(config.hidden, eps=1e-3, momentum=momentum)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames [B, T, D] and their mask -> hidden units [B, H]."""
        if self.batch_norm:
            x_BTD = self.input_norm(x_BTD, mask_BT)
        votes_BTK = self.clusters(x_BTD)
        if self.batch_norm:
            votes_BTK = self.cluster_norm(votes_BTK, mask_BT)
        hidden_BH = self.hidden(self.pool(self.activation(votes_BTK), mask_BT))
        return self.activation(self.hidden_norm(hidden_BH) if self.batch_norm else hidden_BH)
