"""Training losses by name (`LOSSES`), their weights and their penalties.

    loss_of = build(config, class_weights_C)
    loss = loss_of(logits_BC, label_offsets, label_indices, rated_offsets=..., rated_indices=..., ...)

Labels and rated classes are ragged (models/ragged.py). Every loss is the mean over videos of a sum over the rated
classes. The loss by default is models/losses/sparse_cross_entropy.py.
"""

from models.losses.config import DistillConfig, LossConfig, build
from models.losses.registry import LOSSES
from models.losses.sparse_cross_entropy import sigmoid_cross_entropy
from models.losses.teacher import distillation

__all__ = ["LOSSES", "DistillConfig", "LossConfig", "build", "distillation", "sigmoid_cross_entropy"]
