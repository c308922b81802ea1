"""Logistic regression on the mean of a video's frames.

Shapes   B videos in the batch   T frames of the longest   D features of a frame   C classes
Source   google/youtube-8m, FrameLevelLogisticModel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.frame.parts.frames import FrameInput, masked_mean
from models.inputs import Sizes, Statistics
from models.layers import NormalizeKind, linear, start_at_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageLogisticConfig(ModelConfig):
    """Settings of the logistic regression on the mean of a video's frames."""

    level: ClassVar[str] = "frame"

    kind: Literal["average_logistic"] = "average_logistic"
    # How each frame is scaled. standard: by the mean and variance of each column over the training frames. l2: to
    # length 1, all features together. none: not at all.
    normalize: NormalizeKind = "l2"
    # true: the output biases start at the log-odds of each class in the training videos; false: at 0.
    prior_bias: bool = True


class AverageLogistic(nn.Module):
    """FrameInput -> mean over frames -> one linear layer."""

    def __init__(
        self,
        config: AverageLogisticConfig,
        sizes: Sizes,
        statistics: Statistics,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        self.input = FrameInput(config.normalize, statistics)
        self.head = linear(sizes.width, sizes.num_classes, generator)
        if config.prior_bias:
            start_at_prior(self.head, statistics)

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrix, to which l1 and l2 apply."""
        return [self.head.weight]

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames [B, T, D] as bytes or floats, True where a frame is real [B, T] -> logits_BC."""
        logits_BC: Tensor = self.head(masked_mean(self.input(frames_BTD, mask_BT), mask_BT))
        return logits_BC
