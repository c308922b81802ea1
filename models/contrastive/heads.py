"""The heads of an encoder in contrastive training; they are discarded after it.

Shapes   B videos in the batch   F dimensions of an embedding
"""

from __future__ import annotations

import torch
from torch import nn

from models.contrastive.methods import MethodConfig, MocoV1Config, MocoV2Config, MocoV3Config
from models.layers import BatchNorm, linear


def projector(config: MethodConfig, units: int, batch_norm: bool, generator: torch.Generator) -> nn.Module:
    """[B, units] -> [B, F]: the head on an encoder, for queries and for keys.

    NOTE: weights are drawn as in models.layers.linear; in the papers as torch draws them, or for v3's ViT by Xavier.
    """
    if isinstance(config, MocoV1Config):
        return linear(units, config.dimension, generator)
    if isinstance(config, MocoV2Config):
        return nn.Sequential(linear(units, units, generator), nn.ReLU(), linear(units, config.dimension, generator))
    return nn.Sequential(
        _without_bias(linear(units, config.hidden, generator)),
        _norm(config.hidden, batch_norm),
        nn.ReLU(),
        _without_bias(linear(config.hidden, config.dimension, generator)),
        _norm(config.dimension, batch_norm).requires_grad_(False),  # as in the paper without weight, bias
    )


def predictor(config: MethodConfig, batch_norm: bool, generator: torch.Generator) -> nn.Module:
    """[B, F] -> [B, F]: v3's second head, on the projector of the queries only; the identity for v1 and v2."""
    if not isinstance(config, MocoV3Config):
        return nn.Identity()
    return nn.Sequential(
        _without_bias(linear(config.dimension, config.hidden, generator)),
        _norm(config.hidden, batch_norm),
        nn.ReLU(),
        _without_bias(linear(config.hidden, config.dimension, generator)),  # no norm after it, as for ResNet
    )


def _norm(units: int, batch_norm: bool) -> nn.Module:
    """The norm that the encoder has. NOTE: BatchNorm in the paper; with LayerNorm, no row depends on another."""
    return BatchNorm(units) if batch_norm else nn.LayerNorm(units)


def _without_bias(layer: nn.Linear) -> nn.Linear:
    layer.register_parameter("bias", None)
    return layer
