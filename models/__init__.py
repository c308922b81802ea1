"""Tensors in, tensors out: models, losses, metrics and optimizers. Of this project it imports data.schema alone.

model = build(config, sizes, statistics)        # config: an instance of one of CONFIGS' classes
logits_BC = model(features_BD)                  # at video level
logits_BC = model(frames_BTD, mask_BT)          # at frame and segment level
model.regularized                               # the weight matrices to which l1 and l2 apply
"""

from models.config import ModelConfig
from models.inputs import FeatureStatistics, Sizes, Statistics
from models.registry import CONFIGS, MODELS, build, configured
from models.video.fused_mlp import FusedEncoder, FusedMLP, FusedMLPConfig
from models.video.linear import LinearConfig
from models.video.logistic import Logistic, LogisticConfig

__all__ = [
    "CONFIGS",
    "MODELS",
    "FeatureStatistics",
    "FusedEncoder",
    "FusedMLP",
    "FusedMLPConfig",
    "LinearConfig",
    "Logistic",
    "LogisticConfig",
    "ModelConfig",
    "Sizes",
    "Statistics",
    "build",
    "configured",
]
