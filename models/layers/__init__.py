"""Layers that several models share."""

from models.layers.batch_norm import BatchNorm
from models.layers.dropout import Dropout
from models.layers.initialisation import linear, matrices, normal_linear, xavier_linear
from models.layers.normalize import L2Normalize, Normalize, NormalizeKind, l2_normalize, normalizer
from models.layers.prior import prior_log_odds, start_at_prior

__all__ = [
    "BatchNorm",
    "Dropout",
    "L2Normalize",
    "Normalize",
    "NormalizeKind",
    "l2_normalize",
    "linear",
    "matrices",
    "normal_linear",
    "normalizer",
    "prior_log_odds",
    "start_at_prior",
    "xavier_linear",
]
