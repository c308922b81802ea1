"""Tensors in, tensors out: models, losses, metrics and optimizers. Imports torch and numpy, and nothing of ours.

model = build(config, sizes, statistics)        # config: one of CONFIGS' classes
logits_BC = model(features_BD)                  # at video level
logits_BC = model(frames_BTD, mask_BT)          # at frame and segment level
model.regularized                               # the weight matrices under l1 and l2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from models.frame.attention import Attention, AttentionConfig
from models.frame.average_logistic import AverageLogistic, AverageLogisticConfig
from models.frame.dbof import Dbof, DbofConfig
from models.frame.frame_model import FrameModel
from models.frame.frames import MeanPooled
from models.frame.gated_dbof import GatedDbofConfig, gated_count
from models.frame.gru import Gru, GruConfig
from models.frame.heads import HeadConfig
from models.frame.lstm import Lstm, LstmConfig
from models.frame.netfv import FisherVector, NetFvConfig
from models.frame.netrvlad import NetRVladConfig, sums_of_frames
from models.frame.netvlad import NetVladConfig, Vlad
from models.frame.nextvlad import NeXtVlad, NeXtVladConfig
from models.frame.pooling import PerFeature
from models.frame.soft_dbof import SoftDbofConfig, soft_count
from models.layers import FeatureStatistics, Sizes, Statistics
from models.video.fused_mlp import FusedEncoder, FusedMLP, FusedMLPConfig
from models.video.linear import LinearConfig, before_its_fit
from models.video.logistic import Logistic, LogisticConfig
from models.video.mixture_of_experts import MixtureOfExperts, MixtureOfExpertsConfig

ModelConfig = (
    LogisticConfig
    | LinearConfig
    | MixtureOfExpertsConfig
    | FusedMLPConfig
    | AverageLogisticConfig
    | DbofConfig
    | SoftDbofConfig
    | GatedDbofConfig
    | LstmConfig
    | GruConfig
    | NetVladConfig
    | NetRVladConfig
    | NetFvConfig
    | NeXtVladConfig
    | AttentionConfig
)


def _frame_model(pooling: Callable[..., nn.Module]) -> Callable[..., FrameModel]:
    return partial(FrameModel, pooling)


def _per_feature(pooling: Callable[..., nn.Module]) -> Callable[..., FrameModel]:
    return partial(FrameModel, partial(PerFeature, pooling))


# By kind: its settings, and what builds it from (config, sizes, statistics, generator).
MODELS: dict[str, tuple[type[ModelConfig], Callable[..., nn.Module]]] = {
    "logistic": (LogisticConfig, Logistic),
    "linear": (LinearConfig, before_its_fit),
    "mixture_of_experts": (MixtureOfExpertsConfig, MixtureOfExperts),
    "fused_mlp": (FusedMLPConfig, FusedMLP),
    "average_logistic": (AverageLogisticConfig, AverageLogistic),
    "dbof": (DbofConfig, _frame_model(Dbof)),
    "soft_dbof": (SoftDbofConfig, _per_feature(soft_count)),
    "gated_dbof": (GatedDbofConfig, _per_feature(gated_count)),
    "lstm": (LstmConfig, _frame_model(Lstm)),
    "gru": (GruConfig, _frame_model(Gru)),
    "netvlad": (NetVladConfig, _per_feature(Vlad)),
    "netrvlad": (NetRVladConfig, _per_feature(sums_of_frames)),
    "netfv": (NetFvConfig, _per_feature(FisherVector)),
    "nextvlad": (NeXtVladConfig, _frame_model(NeXtVlad)),
    "attention": (AttentionConfig, _frame_model(Attention)),
}
CONFIGS: dict[str, type[ModelConfig]] = {kind: config for kind, (config, _) in MODELS.items()}


def configured(settings: Mapping[str, Any]) -> ModelConfig:
    """The configuration that dataclasses.asdict made these plain settings of."""
    nested = {"head": HeadConfig(**settings["head"])} if "head" in settings else {}
    return CONFIGS[settings["kind"]](**{**settings, **nested})


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
    "AttentionConfig",
    "AverageLogisticConfig",
    "DbofConfig",
    "FeatureStatistics",
    "FusedEncoder",
    "FusedMLP",
    "FusedMLPConfig",
    "GatedDbofConfig",
    "GruConfig",
    "HeadConfig",
    "LinearConfig",
    "Logistic",
    "LogisticConfig",
    "LstmConfig",
    "MixtureOfExpertsConfig",
    "ModelConfig",
    "NeXtVladConfig",
    "NetFvConfig",
    "NetRVladConfig",
    "NetVladConfig",
    "Sizes",
    "SoftDbofConfig",
    "Statistics",
    "build",
    "configured",
]
