"""Mixture of experts: for each class M logistic experts, and gates that weigh them.

    p = sum_m g_m sigmoid(e_m),   g = softmax over M + 1 gates; the last gate is that of an expert that always gives 0

The model returns log p - log(1 - p), both computed in log space: this is exact where p itself would round to 0 or 1,
and its gradient does not vanish there.

Shapes   B videos in the batch   D inputs: features, or units of the layer below   C classes   M experts of a class
Source   google/youtube-8m and WILLOW (2017), MoeModel
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ranges import Count, Fraction
from models.config import ModelConfig
from models.inputs import Sizes, Statistics
from models.layers import (
    BatchNorm,
    NormalizeKind,
    matrices,
    normal_linear,
    normalizer,
    prior_log_odds,
    xavier_linear,
)

# What a second gate of the probabilities is computed from: no second gate, the probabilities, or the experts' inputs.
ProbabilityGating = Literal["none", "probabilities", "inputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExpertsConfig(ModelConfig):
    """Settings of the mixture of experts on video-level features."""

    level: ClassVar[str] = "video"

    kind: Literal["mixture_of_experts"] = "mixture_of_experts"
    # How the features of a video are scaled. standard: by the mean and variance of each column over the training
    # videos. l2: to length 1, all features together. none: not at all.
    normalize: NormalizeKind = "l2"
    mixtures: Count = 2  # number of experts of each class
    # Rank of the gates' weight matrix, which is then a product of two smaller matrices; null: one matrix of full rank.
    low_rank: Count | None = None
    # Whether the probability of each class is multiplied by a second gate, and what that gate is computed from. none:
    # there is no second gate. probabilities: from the probabilities of all classes. inputs: from the features.
    probability_gating: ProbabilityGating = "none"
    # Weight of a new batch in the running statistics of BatchNorm, which only the second gate of probability_gating
    # has. WILLOW has 0.001, which needs about 100,000 steps.
    batch_norm_momentum: Fraction = 0.1
    # true: the probabilities start at the frequency of each class in the training videos; false: at M / (2 M + 2), with
    # M = mixtures.
    prior_bias: bool = True


class Mixture(nn.Module):
    """The mixture on inputs of any width: a whole model on normalised features, or the head of a frame-level model."""

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        generator: torch.Generator | None = None,
        *,
        mixtures: Count = 2,
        low_rank: Count | None = None,
        probability_gating: ProbabilityGating = "none",
        momentum: float = 0.1,
        prior: Statistics | None = None,
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator.

        Args:
            inputs: D.
            num_classes: C.
            generator: of the weights.
            mixtures: M.
            low_rank: rank of the gates' weight matrix; None: full rank.
            probability_gating: the input of the second gate.
            momentum: weight of a new batch in the running statistics of the second gate's BatchNorm.
            prior: statistics at whose class frequencies the probabilities start; None: they start at M / (2 M + 2).
        """
        super().__init__()
        self.mixtures = mixtures
        width = num_classes * (mixtures + 1)  # class by class, as in the source
        self.gates: nn.Module
        if low_rank is None:
            self.gates = xavier_linear(inputs, width, generator, bias=False)
        else:
            first = xavier_linear(inputs, low_rank, generator, bias=False)
            self.gates = nn.Sequential(first, xavier_linear(low_rank, width, generator, bias=False))
        self.experts = xavier_linear(inputs, num_classes * mixtures, generator)
        if prior is not None:
            # Gates of 0 weigh each expert by 1 / (M + 1), so p starts at M / (M + 1) of one expert's probability.
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
    """Multiplies p by a gate sigmoid(s), s = BatchNorm(inputs @ W), by which classes weigh each other (WILLOW, 2017).

    At p = 1 the result is sigmoid(s), always below 1: a gated model is never certain of a class.
    """

    def __init__(self, inputs: int, num_classes: int, generator: torch.Generator | None, momentum: float) -> None:
        """Draws W from N(0, 1 / sqrt(C)) with `generator`; None: torch's global generator."""
        super().__init__()
        self.linear = normal_linear(inputs, num_classes, generator, std=1 / math.sqrt(num_classes))
        self.norm = BatchNorm(num_classes, eps=1e-3, momentum=momentum)

    def forward(self, inputs: Tensor, yes_BC: Tensor, no_BC: Tensor) -> Tensor:
        """The gate's inputs [B, inputs], log p and log(1 - p) [B, C] -> logits_BC of p sigmoid(s)."""
        s_BC = self.norm(self.linear(inputs).float())
        # 1 - p sigmoid(s) = (1 - p) + p sigmoid(-s)
        return yes_BC + F.logsigmoid(s_BC) - torch.logaddexp(no_BC, yes_BC + F.logsigmoid(-s_BC))


class MixtureOfExperts(nn.Module):
    """Normalised features -> mixture of experts."""

    def __init__(
        self,
        config: MixtureOfExpertsConfig,
        sizes: Sizes,
        statistics: Statistics,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
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
        """The weight matrices of gates and experts, to which l1 and l2 apply."""
        return matrices(self)

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype -> logits_BC."""
        logits_BC: Tensor = self.head(self.normalize(features_BD.float()))
        return logits_BC
