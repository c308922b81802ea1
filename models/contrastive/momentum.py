"""The update of the momentum encoder: an exponential moving average of the weights of the trained encoder."""

from __future__ import annotations

import math

import torch
from torch import nn


def momentum_at(momentum: float, progress: float) -> float:
    """1 - (1 - momentum) (1 + cos(pi progress)) / 2, which rises from `momentum` to 1 in the training, as in v3."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


@torch.no_grad()
def ema_(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Moves `target` in place towards `source`, a module of the same structure.

    target <- momentum * target + (1 - momentum) * source

    As in the papers, for parameters only: BatchNorm's running statistics follow the batches of the target itself.
    """
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)
