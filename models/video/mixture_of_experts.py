"""Mixture of experts: for each class M logistic experts, and gates that say how much each of them counts.

    p = sum_m g_m sigmoid(e_m),   g = softmax over M + 1 gates, the last of which belongs to an expert that says 0

The model gives log p - log(1 - p), both computed from logarithms alone: it is exact where p itself would round to 0
or 1, and its gradient does not vanish there.

Shapes   B videos   D features, or units of what lies below   C classes   M experts of a class
Source   google/youtube-8m and WILLOW (2017), MoeModel
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    BatchNorm,
    NormalizeKind,
    Sizes,
    Statistics,
    check_momentum,
    matrices,
    normal_linear,
    normalizer,
    prior_log_odds,
    xavier_linear,
)

# What gates the probabilities once more: nothing, they themselves, or the experts' inputs.
ProbabilityGating = Literal["none", "probabilities", "inputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExpertsConfig:
    """Settings of the mixture of experts on video-level features."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "video"

    kind: Literal["mixture_of_experts"] = "mixture_of_experts"
    normalize: NormalizeKind = "l2"  # standard: by the training videos' mean and variance
    mixtures: int = 2  # experts of a class
    low_rank: int | None = None  # the gates' weights are a product of this rank; None: whole
    probability_gating: ProbabilityGating = "none"
    batch_norm_momentum: float = 0.1  # of the probability gating; published: 0.001, for 100k steps
    prior_bias: bool = True  # the mixtures start at the classes' frequencies instead of M / (2 M + 2)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_mixture(self.mixtures, self.low_rank)
        check_momentum(self.batch_norm_momentum)


def check_mixture(mixtures: int, low_rank: int | None) -> None:
    """Refuse numbers of experts or ranks below 1.

    Raises:
        ValueError: says which.
    """
    if mixtures < 1:
        raise ValueError(f"mixtures must be at least 1, but got {mixtures}")
    if low_rank is not None and low_rank < 1:
        raise ValueError(f"low_rank must be at least 1, but got {low_rank}")


class Mixture(nn.Module):
    """Inputs [B, D] -> logits_BC; also the head of frame-level models."""

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        generator: torch.Generator | None = None,
        *,
        mixtures: int = 2,
        low_rank: int | None = None,
        probability_gating: ProbabilityGating = "none",
        momentum: float = 0.1,
        prior: Statistics | None = None,
    ) -> None:
        """Draws the weights from `generator`; with `prior`, starts at the frequencies of its classes."""
        super().__init__()
        self.mixtures = mixtures
        width = num_classes * (mixtures + 1)  # class by class, as published
        self.gates: nn.Module
        if low_rank is None:
            self.gates = xavier_linear(inputs, width, generator, bias=False)
        else:
            first = xavier_linear(inputs, low_rank, generator, bias=False)
            self.gates = nn.Sequential(first, xavier_linear(low_rank, width, generator, bias=False))
        self.experts = xavier_linear(inputs, num_classes * mixtures, generator)
        if prior is not None:
            # Gates of 0 give each expert 1 / (M + 1), so together M / (M + 1) of what one of them says.
            odds_C = prior_log_odds(prior)
            share_C = (odds_C.sigmoid() * (mixtures + 1) / mixtures).clamp(max=0.99)
            with torch.no_grad():
                self.experts.bias.copy_(share_C.logit().repeat_interleave(mixtures))
        self.gating: ProbabilityGate | None = None
        if probability_gating != "none":
            of_inputs = probability_gating == "inputs"
            self.gating = ProbabilityGate(inputs if of_inputs else num_classes, num_classes, generator, momentum)
            self.gating_of_inputs = of_inputs

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, D] -> logits_BC."""
        gates_BCM = self.gates(x_BD).unflatten(1, (-1, self.mixtures + 1)).float().log_softmax(dim=-1)
        experts_BCM = self.experts(x_BD).unflatten(1, (-1, self.mixtures)).float()
        weights_BCM, dummy_BC1 = gates_BCM[..., :-1], gates_BCM[..., -1:]
        yes_BC = (weights_BCM + F.logsigmoid(experts_BCM)).logsumexp(dim=-1)
        no_BC = torch.cat([dummy_BC1, weights_BCM + F.logsigmoid(-experts_BCM)], dim=-1).logsumexp(dim=-1)
        if self.gating is None:
            return yes_BC - no_BC
        return self.gating(x_BD if self.gating_of_inputs else yes_BC.exp(), yes_BC, no_BC)


class ProbabilityGate(nn.Module):
    """p sigmoid(s), s = BatchNorm(inputs @ W): classes let each other through (WILLOW, 2017).

    With p = 1 the result is sigmoid(s), always below 1: a gated model is never certain of a class.
    """

    def __init__(self, inputs: int, num_classes: int, generator: torch.Generator | None, momentum: float) -> None:
        """W ~ N(0, 1 / sqrt(C))."""
        super().__init__()
        self.linear = normal_linear(inputs, num_classes, generator, std=1 / math.sqrt(num_classes))
        self.norm = BatchNorm(num_classes, eps=1e-3, momentum=momentum)

    def forward(self, inputs: Tensor, yes_BC: Tensor, no_BC: Tensor) -> Tensor:
        """What the gate looks at, log p and log (1 - p) -> logits_BC of p sigmoid(s)."""
        s_BC = self.norm(self.linear(inputs).float())
        # 1 - p sigmoid(s) = (1 - p) + p sigmoid(-s)
        return yes_BC + F.logsigmoid(s_BC) - torch.logaddexp(no_BC, yes_BC + F.logsigmoid(-s_BC))


class MixtureOfExperts(nn.Module):
    """Normalised features -> mixture."""

    def __init__(
        self,
        config: MixtureOfExpertsConfig,
        sizes: Sizes,
        statistics: Statistics,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draws the weights from `generator`, or from torch's global one."""
        super().__init__()
        self.normalize = normalizer(config.normalize, statistics)
        self.head = Mixture(
            sizes.width,
            sizes.num_classes,
            generator,
            mixtures=config.mixtures,
            low_rank=config.low_rank,
            probability_gating=config.probability_gating,
            momentum=config.batch_norm_momentum,
            prior=statistics if config.prior_bias else None,
        )

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrices of gates and experts."""
        return matrices(self)

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype -> logits_BC."""
        logits_BC: Tensor = self.head(self.normalize(features_BD.float()))
        return logits_BC
