"""Fused MLP: a tower per feature, concatenated, then a joint layer and one logit per class.

Shapes   B videos in the batch   D features of all names   T units of all towers   H joint units   C classes
Source   lidalei/youtube-8m, mlp_fuse_rgb_audio.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from models.layers import (
    BatchNorm,
    Dropout,
    Normalize,
    Sizes,
    Statistics,
    check_momentum,
    check_per_feature,
    check_positive,
    linear,
    start_at_prior,
    tensor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedMLPConfig:
    """Settings of the fused MLP; the defaults are the published ones but for batch_norm_momentum and prior_bias."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "video"

    kind: Literal["fused_mlp"] = "fused_mlp"
    towers: Mapping[str, int]  # width of the tower of each feature, by feature name (published: 2048 rgb, 256 audio)
    hidden: int = 1200  # units of the joint layer
    dropout: float = 0.5  # probability of zeroing a unit of the concatenated towers, in training only
    norm: Literal["batch_norm", "layer_norm"] = "batch_norm"  # after each linear layer but the last; published: batch
    batch_norm_momentum: float = (
        0.1  # weight of a new batch in the running statistics; published: 0.001, for 100k steps
    )
    batch_norm_epsilon: float = 1e-5  # added to the variance, of the batch or the layer
    # Standardised columns are multiplied by their deviation to this power. YouTube-8M's visual columns are principal
    # components, whitened long ago on other videos: what variance they have here says what signal. 0, published: alike.
    variance_power: float = 0.0
    prior_bias: bool = True  # output biases start at the classes' log-odds instead of 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_positive(self, "towers", "hidden")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), but got {self.dropout}")
        check_momentum(self.batch_norm_momentum)
        if not 0 <= self.variance_power < math.inf:
            raise ValueError(f"variance_power must be finite and not negative, but got {self.variance_power}")
        if not self.batch_norm_epsilon > 0:
            raise ValueError(f"batch_norm_epsilon must be positive, but got {self.batch_norm_epsilon}")


class Block(nn.Module):
    """Linear -> BatchNorm (or LayerNorm) -> tanh.

    The linear layer keeps its bias, as published, although BatchNorm cancels it; but it stays 0. Its gradient is 0 but
    for rounding, which Adam scales up to whole steps: the bias would wander, the running mean lag behind it, and the
    validation change in its third digit with the number of threads (measured: GAP 0.7381 with one, 0.7400 with two).

    NOTE: the published running statistics are exponential averages that start at 0 and are not debiased (so those after
    n steps are 1 - 0.999^n of what they should be) and of the biased batch variance. Torch's start at mean 0 and
    variance 1 and average the unbiased variance.
    """

    def __init__(self, inputs: int, units: int, config: FusedMLPConfig, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`."""
        super().__init__()
        self.linear = linear(inputs, units, generator)
        self.norm: nn.Module
        if config.norm == "layer_norm":
            self.norm = nn.LayerNorm(units, eps=config.batch_norm_epsilon)  # it does not cancel the bias
        else:
            self.linear.bias.requires_grad_(False)
            self.norm = BatchNorm(units, eps=config.batch_norm_epsilon, momentum=config.batch_norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, units] in (-1, 1)."""
        return torch.tanh(self.norm(self.linear(x)))


def emphasis(variance_D: Any, widths: Sequence[int], power: float) -> Tensor:
    """Variance ** (power / 2), over its root mean square among the columns of the same feature; [D] float32.

    A column without variance counts 0, but for power 0, where all count 1.
    """
    parts = torch.split(tensor(variance_D).double() ** (power / 2), list(widths))
    return torch.cat([part / part.square().mean().sqrt().clamp(min=1e-12) for part in parts]).float()


class FusedEncoder(nn.Module):
    """Normalize -> emphasis of columns -> a tower per feature -> concatenation -> dropout -> joint layer.

    The fused MLP without its output.
    """

    emphasis_D: Tensor

    def __init__(
        self, config: FusedMLPConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
    ) -> None:
        """Draws the weights from `generator`, or from torch's global one.

        Raises:
            ValueError: the towers are not those of the data's features.
        """
        super().__init__()
        check_per_feature("towers", config.towers, sizes)
        self.widths = list(sizes.features.values())  # where a row is cut, in the row's order
        self.width = config.hidden  # of an embedding
        self.normalize = Normalize(statistics.mean_D, statistics.variance_D)
        self.register_buffer("emphasis_D", emphasis(statistics.variance_D, self.widths, config.variance_power))
        self.towers = nn.ModuleList(
            Block(width, config.towers[name], config, generator) for name, width in sizes.features.items()
        )
        self.dropout = Dropout(config.dropout)
        self.joint = Block(sum(config.towers.values()), config.hidden, config, generator)

    def encode(self, normalized_BD: Tensor) -> Tensor:
        """What `normalize` gives (or a view of it) -> embeddings_BH in (-1, 1)."""
        parts = torch.split(normalized_BD * self.emphasis_D, self.widths, dim=1)
        towers_BT = torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)
        embeddings_BH: Tensor = self.joint(self.dropout(towers_BT))
        return embeddings_BH

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype, features side by side in the order of `sizes.features` -> embeddings_BH."""
        return self.encode(self.normalize(features_BD))


class FusedMLP(nn.Module):
    """The encoder and one logit per class on top.

    9,543,494 parameters at the published widths and 3,862 classes.
    """

    def __init__(
        self, config: FusedMLPConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
    ) -> None:
        """As FusedEncoder."""
        super().__init__()
        self.encoder = FusedEncoder(config, sizes, statistics, generator)
        self.head = linear(config.hidden, sizes.num_classes, generator)
        if config.prior_bias:
            start_at_prior(self.head, statistics)

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrices under l1 and l2: towers, joint, head; no bias, nothing of the norms."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Linear)]

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype, features side by side in the order of `sizes.features` -> logits_BC."""
        logits_BC: Tensor = self.head(self.encoder(features_BD))  # the loss owns the sigmoid
        return logits_BC
