"""One-vs-all logistic regression: a logit per class, linear in the standardised features.

Shapes   B videos in the batch   D features, all names side by side   C classes
Source   lidalei/youtube-8m, log_reg.py; google/youtube-8m, LogisticModel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.inputs import Sizes, Statistics
from models.layers import Normalize, linear, start_at_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticConfig(ModelConfig):
    """Settings of the logistic regression on video-level features."""

    level: ClassVar[str] = "video"

    kind: Literal["logistic"] = "logistic"
    # true: the output biases start at the log-odds of each class in the training videos; false: at 0.
    prior_bias: bool = True


class Logistic(nn.Module):
    """Normalize -> one linear layer."""

    def __init__(
        self, config: LogisticConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        self.normalize = Normalize(statistics.mean_D, statistics.variance_D)
        self.head = linear(sizes.width, sizes.num_classes, generator)
        if config.prior_bias:
            start_at_prior(self.head, statistics)

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrix, to which l1 and l2 apply."""
        return [self.head.weight]

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype -> logits_BC."""
        logits_BC: Tensor = self.head(self.normalize(features_BD))
        return logits_BC

    def folded(self) -> tuple[Tensor, Tensor]:
        """The weights [C, D] and biases [C] of a single linear layer on raw features that gives the same logits."""
        weight_CD = self.head.weight * self.normalize.scale_D
        return weight_CD, self.head.bias - weight_CD @ self.normalize.mean_D

    @torch.no_grad()
    def unfold(self, weight_CD: Tensor, bias_C: Tensor) -> None:
        """Sets the weights for which `folded` gives these."""
        self.head.weight.copy_(weight_CD / self.normalize.scale_D)
        self.head.bias.copy_(bias_C + weight_CD @ self.normalize.mean_D)
