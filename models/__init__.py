"""Tensors in, tensors out: models, losses, metrics and optimizers. Imports torch and numpy, and nothing of ours.

model = build(config, sizes, statistics)        # config: one of CONFIGS' classes
logits_BC = model(features_BD)
model.regularized                               # the weight matrices under l1 and l2
"""

from __future__ import annotations

import torch

from .fused_mlp import FusedEncoder, FusedMLP, FusedMLPConfig
from .layers import FeatureStatistics, Sizes, Statistics
from .logistic import Logistic, LogisticConfig

ModelConfig = FusedMLPConfig | LogisticConfig

CONFIGS: dict[str, type[ModelConfig]] = {"fused_mlp": FusedMLPConfig, "logistic": LogisticConfig}


def build(
    config: ModelConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
) -> FusedMLP | Logistic:
    """The model that a configuration describes, on the CPU, in training mode.

    Args:
        config: an instance of one of CONFIGS' classes.
        sizes: widths of the features and number of classes.
        statistics: of the training videos; copied into buffers and biases.
        generator: where the weights are drawn from; None draws them from torch's global generator.

    Returns:
        A module with forward(features_BD) -> logits_BC and the property `regularized`.

    Raises:
        ValueError: the configuration or the statistics do not fit the sizes.
    """
    for name, vector, length in (
        ("mean_D", statistics.mean_D, sizes.width),
        ("variance_D", statistics.variance_D, sizes.width),
        ("label_counts_C", statistics.label_counts_C, sizes.num_classes),
    ):
        if tuple(vector.shape) != (length,):
            raise ValueError(f"statistics.{name} must have {length} values, but got the shape {tuple(vector.shape)}")
    if isinstance(config, LogisticConfig):
        return Logistic(config, sizes, statistics, generator)
    return FusedMLP(config, sizes, statistics, generator)


__all__ = [
    "CONFIGS",
    "FeatureStatistics",
    "FusedEncoder",
    "FusedMLP",
    "FusedMLPConfig",
    "Logistic",
    "LogisticConfig",
    "ModelConfig",
    "Sizes",
    "Statistics",
    "build",
]
