"""The frame-level model: input, pooling and head. Each model's own file defines its pooling.

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         H units of a pooled video   C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.ranges import Fraction
from models.config import ModelConfig
from models.frame.parts.frames import FrameInput
from models.frame.parts.heads import HeadConfig, head
from models.inputs import Sizes, Statistics
from models.layers import NormalizeKind, matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameModelConfig(ModelConfig):
    """Settings of every frame-level model with a pooling and a head."""

    level: ClassVar[str] = "frame"

    # How each frame is scaled. standard: by the mean and variance of each column over the training frames. l2: to
    # length 1, all features together. none: not at all.
    normalize: NormalizeKind = "l2"
    # Weight of a new batch in the running statistics of BatchNorm. The sources of these models have 0.001, which needs
    # about 100,000 steps.
    batch_norm_momentum: Fraction = 0.1
    # The output layer: from the pooled frames of a video to a probability for each class.
    head: HeadConfig = field(default_factory=HeadConfig)


class FrameModel(nn.Module):
    """FrameInput -> pooling -> head."""

    def __init__(
        self,
        pooling: Callable[[Any, Sizes, torch.Generator | None], Any],
        config: FrameModelConfig,
        sizes: Sizes,
        statistics: Statistics,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator.

        Args:
            pooling: makes the pooling from (config, sizes, generator), say its class. The module's
                forward(x_BTD, mask_BT) gives [B, H], and its attribute `width` is H.
            config: of the model.
            sizes: of the data.
            statistics: of the training frames.
            generator: of the weights.
        """
        super().__init__()
        self.input = FrameInput(config.normalize, statistics)
        self.pooling = pooling(config, sizes, generator)
        self.head = head(config.head, self.pooling.width, statistics, generator, config.batch_norm_momentum)

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrices of pooling and head, to which l1 and l2 apply; no cluster centres."""
        return matrices(self)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames [B, T, D] as bytes or floats, True where a frame is real [B, T] -> logits_BC."""
        logits_BC: Tensor = self.head(self.pooling(self.input(frames_BTD, mask_BT), mask_BT))
        return logits_BC
