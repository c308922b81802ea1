"""The table of models: what `model.kind` may be, with its settings and what builds it.

To add a model, write one file with its frozen config and its module, and give it an entry in MODELS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from models.config import ModelConfig
from models.frame.attention import Attention, AttentionConfig
from models.frame.average_logistic import AverageLogistic, AverageLogisticConfig
from models.frame.dbof import Dbof, DbofConfig
from models.frame.gated_dbof import GatedDbofConfig, gated_count
from models.frame.gru import Gru, GruConfig
from models.frame.lstm import Lstm, LstmConfig
from models.frame.netfv import FisherVector, NetFvConfig
from models.frame.netrvlad import NetRVladConfig, sums_of_frames
from models.frame.netvlad import NetVladConfig, Vlad
from models.frame.nextvlad import NeXtVlad, NeXtVladConfig
from models.frame.parts.clusters import PerFeature
from models.frame.parts.frame_model import FrameModel
from models.frame.parts.frames import MeanPooled
from models.frame.parts.heads import HeadConfig
from models.frame.soft_dbof import SoftDbofConfig, soft_count
from models.inputs import Sizes, Statistics
from models.video.fused_mlp import FusedMLP, FusedMLPConfig
from models.video.linear import LinearConfig, unfitted
from models.video.logistic import Logistic, LogisticConfig
from models.video.mixture_of_experts import MixtureOfExperts, MixtureOfExpertsConfig

Build = Callable[..., nn.Module]  # (config, sizes, statistics, generator) -> model


def _pooled(pooling: Callable[..., nn.Module]) -> Build:
    """Input, this pooling of all features together, and head."""
    return partial(FrameModel, pooling)


def _pooled_per_feature(pooling: Callable[..., nn.Module]) -> Build:
    """Input, a pooling for each feature, hidden layer and head."""
    return partial(FrameModel, partial(PerFeature, pooling))


MODELS: dict[str, tuple[type[ModelConfig], Build]] = {
    "logistic": (LogisticConfig, Logistic),
    "linear": (LinearConfig, unfitted),
    "mixture_of_experts": (MixtureOfExpertsConfig, MixtureOfExperts),
    "fused_mlp": (FusedMLPConfig, FusedMLP),
    "average_logistic": (AverageLogisticConfig, AverageLogistic),
    "dbof": (DbofConfig, _pooled(Dbof)),
    "soft_dbof": (SoftDbofConfig, _pooled_per_feature(soft_count)),
    "gated_dbof": (GatedDbofConfig, _pooled_per_feature(gated_count)),
    "lstm": (LstmConfig, _pooled(Lstm)),
    "gru": (GruConfig, _pooled(Gru)),
    "netvlad": (NetVladConfig, _pooled_per_feature(Vlad)),
    "netrvlad": (NetRVladConfig, _pooled_per_feature(sums_of_frames)),
    "netfv": (NetFvConfig, _pooled_per_feature(FisherVector)),
    "nextvlad": (NeXtVladConfig, _pooled(NeXtVlad)),
    "attention": (AttentionConfig, _pooled(Attention)),
}
CONFIGS: dict[str, type[ModelConfig]] = {kind: config for kind, (config, _) in MODELS.items()}


def configured(settings: Mapping[str, Any]) -> ModelConfig:
    """The configuration whose dataclasses.asdict gave these settings.

    Raises:
        KeyError: `settings` has no kind, or one that is not in MODELS.
        TypeError: a setting is not one of the kind's.
        ValueError: a setting is out of its range.
    """
    nested = {"head": HeadConfig(**settings["head"])} if "head" in settings else {}
    return CONFIGS[settings["kind"]](**{**settings, **nested})


def build(
    config: ModelConfig, sizes: Sizes, statistics: Statistics, generator: torch.Generator | None = None
) -> nn.Module:
    """Builds the model of a configuration, on torch's default device, in training mode.

    On data with frames, a video-level model takes the mean of each video's frames.

    Args:
        config: an instance of one of the classes in MODELS.
        sizes: widths of the features, number of classes, level of the records.
        statistics: of the training videos (at frame and segment level, moments of their frames); the model copies them
            into buffers and biases.
        generator: draws the weights; None draws them from torch's global generator.

    Returns:
        A module with the property `regularized`. At video level its forward takes features_BD and gives logits_BC; at
        frame and segment level it takes frames_BTD and mask_BT.

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
