"""Attention pooling: several weighted means of a video's frames, with weights from a small gated network.

    score = w . (tanh(V x) * sigmoid(U x)),   weights = softmax of the scores over the frames

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         A heads   U units   H hidden units
Source   Ilse et al. (2018), "Attention-based deep multiple instance learning", equation 9, with a w for each head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ranges import Count
from models.frame.parts.frame_model import FrameModelConfig
from models.frame.parts.frames import padded
from models.inputs import Sizes
from models.layers import BatchNorm, xavier_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig(FrameModelConfig):
    """Settings of attention pooling."""

    kind: Literal["attention"] = "attention"
    heads: Count = 8  # number of attention heads; each gives one weighted mean of the frames
    units: Count = 128  # number of units of the network that computes the weights of the frames (in the paper: 128)
    hidden: Count = 1024  # number of units of the layer after the pooling


class Attention(nn.Module):
    """The weighted means side by side -> linear -> BatchNorm -> relu6."""

    def __init__(self, config: AttentionConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        self.tanh = xavier_linear(sizes.width, config.units, generator)
        self.gate = xavier_linear(sizes.width, config.units, generator)
        self.score = xavier_linear(config.units, config.heads, generator, bias=False)  # the softmax would cancel a bias
        self.hidden = xavier_linear(sizes.width * config.heads, config.hidden, generator, bias=False)
        self.norm = BatchNorm(config.hidden, eps=1e-3, momentum=config.batch_norm_momentum)
        self.width = config.hidden

    def weights(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The weight of each frame for each head, [B, T, A] float32; the weights of a video's frames sum to 1."""
        scores_BTA = self.score(torch.tanh(self.tanh(x_BTD)) * torch.sigmoid(self.gate(x_BTD))).float()
        lowest = torch.finfo(scores_BTA.dtype).min  # not -inf, which gives NaN for a video without frames
        return padded(torch.where(mask_BT[..., None], scores_BTA, lowest).softmax(dim=1), mask_BT)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames [B, T, D] and their mask -> hidden units [B, H]."""
        means_BAD = self.weights(x_BTD, mask_BT).transpose(1, 2) @ x_BTD
        return F.relu6(self.norm(self.hidden(means_BAD.flatten(1)).float()))
