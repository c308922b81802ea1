"""What turns the one row that a frame-level model makes of a video into logits.

Shapes   B videos   H units of the row   C classes
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import nn

from models.layers import Statistics, linear, start_at_prior
from models.video.mixture_of_experts import Mixture, ProbabilityGating, check_mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Settings of the output."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moe", "logistic"] = "moe"
    mixtures: int = 2  # moe: experts of a class
    low_rank: int | None = None  # moe: the gates' weights are a product of this rank; None: whole
    probability_gating: ProbabilityGating = "none"  # moe; WILLOW's winners (2017): probabilities
    prior_bias: bool = True  # starts at the classes' frequencies

    def __post_init__(self) -> None:
        """Checks the ranges, and that no setting is given that the kind does not read."""
        check_mixture(self.mixtures, self.low_rank)
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
    """[B, H] -> logits_BC; `momentum` is that of BatchNorm, which the probability gating has."""
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
