"""What all frame-level models but the simplest are: input, pooling, head. A model's file says how it pools.

Shapes   B videos   T frames of the longest of them   D features of a frame   H units of a pooled video   C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.frame.frames import FrameInput
from models.frame.heads import HeadConfig, head
from models.layers import NormalizeKind, Sizes, Statistics, check_momentum, check_positive, matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameModelConfig:
    """Settings that all of them have."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "frame"
    positive: ClassVar[tuple[str, ...]] = ()  # settings that must be at least 1

    kind: str
    normalize: NormalizeKind = "l2"  # of a frame; standard: by the training frames' mean and variance
    batch_norm_momentum: float = 0.1  # weight of a new batch in the running statistics; published: 0.001
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_positive(self, *self.positive)
        check_momentum(self.batch_norm_momentum)


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
        """Draws the weights from `generator`, or from torch's global one.

        Args:
            pooling: a module class; forward(x_BTD, mask_BT) -> [B, H], and its attribute `width` is H.
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
        """The weight matrices of pooling and head, under l1 and l2; no cluster centres."""
        return matrices(self)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Bytes or floats, and which are frames -> logits_BC."""
        logits_BC: Tensor = self.head(self.pooling(self.input(frames_BTD, mask_BT), mask_BT))
        return logits_BC
