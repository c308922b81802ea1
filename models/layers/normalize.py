"""The normalisation of a model's input.

Shapes   B videos in the batch   D features, all names side by side
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.inputs import Statistics
from models.tensors import as_tensor

EPSILON = 1e-12  # as in tf.nn.l2_normalize; far below any real variance


class Normalize(nn.Module):
    """(x - mean) / sqrt(variance + 1e-12) for each feature; a feature of variance 0 is only centred.

    The statistics are buffers: they are saved with the weights, so a trained model runs without the training data.
    float16 and bfloat16 inputs are converted to float32 before the subtraction.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, mean_D: Any, variance_D: Any) -> None:
        """Stores the statistics, tensors or arrays [D].

        Raises:
            ValueError: the shapes differ, a value is not finite, or a variance is negative.
        """
        super().__init__()
        mean, variance = as_tensor(mean_D), as_tensor(variance_D)
        if mean.ndim != 1 or mean.shape != variance.shape:
            raise ValueError(
                "mean and variance must be vectors of one length, "
                f"but got {tuple(mean.shape)} and {tuple(variance.shape)}"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all()):
            raise ValueError("mean and variance must be finite and variance not negative, but some are not")
        scale = torch.where(variance > 0, (variance.double() + EPSILON).rsqrt(), 1.0)
        self.register_buffer("mean_D", mean.float().clone())
        self.register_buffer("scale_D", scale.float())

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype -> [B, D] float32."""
        return (features_BD.float() - self.mean_D) * self.scale_D


class L2Normalize(nn.Module):
    """x / |x|, with the norm over all features of a row together; a row of zeros stays zeros.

    As in google/youtube-8m, rgb and audio are normalised as one vector.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] of any float dtype -> [..., D] float32 of length 1."""
        return l2_normalize(x.float(), dim=-1)


NormalizeKind = Literal["standard", "l2", "none"]


def normalizer(kind: NormalizeKind, statistics: Statistics) -> nn.Module:
    """The module for a model's setting `normalize`; `statistics` have an effect on "standard" only."""
    match kind:
        case "standard":
            return Normalize(statistics.mean_D, statistics.variance_D)
        case "l2":
            return L2Normalize()
        case "none":
            return nn.Identity()


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """X / sqrt(max(sum x^2, 1e-12)) along `dim`; zeros, which have no direction, stay zeros with a finite gradient."""
    return x * x.square().sum(dim, keepdim=True).clamp(min=EPSILON).rsqrt()
