"""The output layer of a frame-level model: from the pooled row of a video to logits.

Shapes   B videos in the batch   H units of the pooled row   C classes
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import nn

from data.ranges import Count, check_ranges
from models.inputs import Statistics
from models.layers import linear, start_at_prior
from models.video.mixture_of_experts import Mixture, ProbabilityGating


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Settings of the output layer."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # The kind of output layer. moe: a mixture of experts. logistic: one linear layer.
    kind: Literal["moe", "logistic"] = "moe"
    mixtures: Count = 2  # moe: number of experts of each class
    # moe: rank of the gates' weight matrix, which is then a product of two smaller matrices; null: one matrix of full
    # rank.
    low_rank: Count | None = None
    # moe: whether the probability of each class is multiplied by a second gate, and what that gate is computed from.
    # none: there is no second gate. probabilities: from the probabilities of all classes, as in WILLOW. inputs: from
    # the pooled frames.
    probability_gating: ProbabilityGating = "none"
    # true: the probabilities start at the frequency of each class in the training videos; false: they start independent
    # of the data.
    prior_bias: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges, and refuses a setting that has no effect on the kind."""
        check_ranges(self)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if self.kind == "logistic" and setting.name not in ("kind", "prior_bias") and value != setting.default:
                raise ValueError(f"{setting.name} has no effect on a logistic head, only on moe, but got {value}")


def head(
    config: HeadConfig,
    inputs: int,
    statistics: Statistics,
    generator: torch.Generator | None,
    momentum: float,
) -> nn.Module:
    """A module [B, H] -> logits_BC; `inputs` is H, and `momentum` that of the BatchNorm in the probability gating."""
    num_classes = len(statistics.label_counts_C)
    if config.kind == "logistic":
        layer = linear(inputs, num_classes, generator)
        if config.prior_bias:
            start_at_prior(layer, statistics)
        return layer
    return Mixture(
        inputs,
        num_classes,
        generator,
        mixtures=config.mixtures,
        low_rank=config.low_rank,
        probability_gating=config.probability_gating,
        momentum=momentum,
        prior=statistics if config.prior_bias else None,
    )
