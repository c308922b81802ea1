"""Tensors in, tensors out: models, losses, metrics and optimizers. Imports torch and numpy, and nothing of ours.

model = build(config, sizes, statistics)        # config: one of CONFIGS' classes
logits_BC = model(features_BD)                  # at video level
logits_BC = model(frames_BTD, mask_BT)          # at frame and segment level
model.regularized                               # the weight matrices under l1 and l2
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .average_logistic import AverageLogistic, AverageLogisticConfig
from .frames import MeanPooled
from .fused_mlp import FusedEncoder, FusedMLP, FusedMLPConfig
from .layers import FeatureStatistics, Sizes, Statistics
from .logistic import Logistic, LogisticConfig
from .mixture_of_experts import MixtureOfExperts, MixtureOfExpertsConfig

ModelConfig = FusedMLPConfig | LogisticConfig | MixtureOfExpertsConfig | AverageLogisticConfig

# By kind: its settings, and what builds it from (config, sizes, statistics, generator).
MODELS: dict[str, tuple[type[ModelConfig], Callable[..., nn.Module]]] = {
    "logistic": (LogisticConfig, Logistic),
    "mixture_of_experts": (MixtureOfExpertsConfig, MixtureOfExperts),
    "fused_mlp": (FusedMLPConfig, FusedMLP),
    "average_logistic": (AverageLogisticConfig, AverageLogistic),
}
CONFIGS: dict[str, type[ModelConfig]] = {kind: config for kind, (config, _) in MODELS.items()}


def build(
    config: ModelConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
) -> nn.Module:
    """The model that a configuration describes, on torch's default device, in training mode.

    A video-level model takes the mean of each video's frames where the data has frames.

    Args:
        config: an instance of one of CONFIGS' classes.
        sizes: widths of the features, number of classes, level of the records.
        statistics: of the training videos (at frame level, moments of their frames); copied into buffers and biases.
        generator: where the weights are drawn from; None draws them from torch's global generator.

    Returns:
        A module with the property `regularized`, and forward(features_BD) -> logits_BC, or at frame and segment level
        forward(frames_BTD, mask_BT) -> logits_BC.

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
    if config.level == "frame" and sizes.level == "video":
        raise ValueError(f"{config.kind} takes frames, but the data has a row of features for each video")
    _, make = MODELS[config.kind]
    model = make(config, sizes, statistics, generator)
    return MeanPooled(model) if config.level == "video" and sizes.level != "video" else model


__all__ = [
    "CONFIGS",
    "MODELS",
    "AverageLogisticConfig",
    "FeatureStatistics",
    "FusedEncoder",
    "FusedMLP",
    "FusedMLPConfig",
    "Logistic",
    "LogisticConfig",
    "MixtureOfExpertsConfig",
    "ModelConfig",
    "Sizes",
    "Statistics",
    "build",
]
