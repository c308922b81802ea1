"""SGD with momentum, as torch implements it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD

from models.optim.groups import decayed


def sgd(
    parameters: Iterable[Tensor], *, lr: float | Tensor, momentum: float, weight_decay: float, nesterov: bool = False
) -> SGD:
    """SGD in torch's fused form; weight_decay * weight is added to the gradient, of matrices only."""
    parameters = list(parameters)
    optimizer = SGD(decayed(parameters, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:
        # Torch leaves the buffers uninitialised until the first step fills them, and that step may be skipped.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
