"""Fused MLP: a tower per feature, concatenated, then a joint layer and one logit per class.

Shapes   B videos in the batch   D features, all names side by side   T units of all towers together
         H units of the joint layer   C classes
Source   lidalei/youtube-8m, mlp_fuse_rgb_audio.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from data.ranges import Count, Fraction, Positive, Power, Share
from models.config import ModelConfig, check_per_feature
from models.inputs import Sizes, Statistics
from models.layers import BatchNorm, Dropout, Normalize, linear, start_at_prior
from models.tensors import as_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedMLPConfig(ModelConfig):
    """Settings of the fused MLP; defaults as in lidalei/youtube-8m, except batch_norm_momentum and prior_bias."""

    level: ClassVar[str] = "video"

    kind: Literal["fused_mlp"] = "fused_mlp"
    # Number of units of each feature's tower, by feature name; every feature of the data needs one (lidalei/youtube-8m:
    # 2048 for rgb, 256 for audio).
    towers: Mapping[str, Count]
    hidden: Count = 1200  # number of units of the joint layer
    dropout: Share = 0.5  # probability with which each unit of the concatenated towers is set to 0, in training only
    # The normalisation after each linear layer except the output layer.
    norm: Literal["batch_norm", "layer_norm"] = "batch_norm"
    # Weight of a new batch in the running statistics of BatchNorm; has no effect with norm layer_norm.
    # lidalei/youtube-8m has 0.001, which needs about 100,000 steps.
    batch_norm_momentum: Fraction = 0.1
    # Number that BatchNorm or LayerNorm adds to the variance, so that it never divides by 0.
    batch_norm_epsilon: Positive = 1e-5
    # Each standardised column is multiplied by its standard deviation to this power. YouTube-8M's visual columns are
    # principal components that were whitened on other videos, so the variance of a column here tells how much signal it
    # carries. 0, as in lidalei/youtube-8m, treats all columns alike.
    variance_power: Power = 0.0
    # true: the output biases start at the log-odds of each class in the training videos; false: at 0.
    prior_bias: bool = True


class Block(nn.Module):
    """Linear -> BatchNorm (or LayerNorm) -> tanh.

    The linear layer has a bias, as in the source, although BatchNorm cancels it; here it is frozen at 0. Its true
    gradient is 0, and Adam scales the rounding errors up to full steps: the bias would drift, the running mean would
    lag behind it, and the validation would change in its third digit with the number of threads (measured: GAP 0.7381
    with one thread, 0.7400 with two).

    NOTE: the source's running statistics are exponential averages of the batch mean and the biased batch variance that
    start at 0 and are not debiased, so those after n steps are 1 - 0.999^n of the true values. Torch's start at mean 0
    and variance 1 and average the unbiased variance.
    """

    def __init__(self, inputs: int, units: int, config: FusedMLPConfig, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        super().__init__()
        self.linear = linear(inputs, units, generator)
        self.norm: nn.Module
        if config.norm == "layer_norm":
            self.norm = nn.LayerNorm(units, eps=config.batch_norm_epsilon)  # does not cancel the bias
        else:
            self.linear.bias.requires_grad_(False)
            self.norm = BatchNorm(units, eps=config.batch_norm_epsilon, momentum=config.batch_norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, units] in (-1, 1)."""
        return torch.tanh(self.norm(self.linear(x)))


def emphasis(variance_D: Any, widths: Sequence[int], power: float) -> Tensor:
    """The factor of each column: variance ** (power / 2), divided by its root mean square over the feature's columns.

    A column of variance 0 has the factor 0, except with power 0, where every factor is 1.

    Returns:
        [D] float32.
    """
    parts = torch.split(as_tensor(variance_D).double() ** (power / 2), list(widths))
    return torch.cat([part / part.square().mean().sqrt().clamp(min=1e-12) for part in parts]).float()


class FusedEncoder(nn.Module):
    """The fused MLP without its output layer.

    Normalize -> emphasis of columns -> a tower per feature -> concatenation -> dropout -> joint layer
    """

    emphasis_D: Tensor

    def __init__(
        self, config: FusedMLPConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator.

        Raises:
            ValueError: `towers` does not name exactly the features of the data.
        """
        super().__init__()
        check_per_feature("towers", config.towers, sizes)
        self.widths = list(sizes.features.values())  # of the features, in the order of a row's columns
        self.width = config.hidden  # H, of an embedding
        self.normalize = Normalize(statistics.mean_D, statistics.variance_D)
        self.register_buffer("emphasis_D", emphasis(statistics.variance_D, self.widths, config.variance_power))
        self.towers = nn.ModuleList(
            Block(width, config.towers[name], config, generator) for name, width in sizes.features.items()
        )
        self.dropout = Dropout(config.dropout)
        self.joint = Block(sum(config.towers.values()), config.hidden, config, generator)

    def encode(self, normalized_BD: Tensor) -> Tensor:
        """Normalised features [B, D], or an augmented view of them -> embeddings_BH in (-1, 1)."""
        parts = torch.split(normalized_BD * self.emphasis_D, self.widths, dim=1)
        towers_BT = torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)
        embeddings_BH: Tensor = self.joint(self.dropout(towers_BT))
        return embeddings_BH

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype, features side by side in the order of `sizes.features` -> embeddings_BH."""
        return self.encode(self.normalize(features_BD))


class FusedMLP(nn.Module):
    """The encoder and a linear output layer with one logit per class.

    9,543,494 parameters at the widths of the source and 3,862 classes.
    """

    def __init__(
        self, config: FusedMLPConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
    ) -> None:
        """Draws the weights from `generator`; None: from torch's global generator.

        Raises:
            ValueError: `towers` does not name exactly the features of the data.
        """
        super().__init__()
        self.encoder = FusedEncoder(config, sizes, statistics, generator)
        self.head = linear(config.hidden, sizes.num_classes, generator)
        if config.prior_bias:
            start_at_prior(self.head, statistics)

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrices of towers, joint layer and head, to which l1 and l2 apply; no biases or norms."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Linear)]

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype, features side by side in the order of `sizes.features` -> logits_BC."""
        logits_BC: Tensor = self.head(self.encoder(features_BD))  # the loss applies the sigmoid
        return logits_BC
