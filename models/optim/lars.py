"""LARS as in MoCo v3: SGD with momentum whose step is scaled to the norm of each weight matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017, arXiv 1708.03888).

    gradient = gradient + weight_decay * weight                          of matrices only
    gradient = gradient * trust * ||weight|| / ||gradient||              of matrices only, where neither norm is 0
    moved    = momentum * moved + gradient
    weight   = weight - lr * moved

    For biases and gains (one dimension) the gradient is used unchanged: no decay, no scaling.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float | Tensor,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = 1e-6,
    ) -> None:
        """Starts with a last movement of zero for every parameter.

        Args:
            parameters: on their device.
            lr: learning rate.
            momentum: of the movement.
            trust: length of a step at a learning rate of 1, as a share of the matrix's norm.
            weight_decay: added to the gradient before it is scaled.
        """
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["moved"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes a step, or none where the attribute `found_inf` (set by models.optim.optimizers.step) is 1."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(group, parameter, parameter.grad, found_inf)

    def _step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, found_inf: Tensor | None) -> None:
        """Updates one parameter without reading a value on the host, so that CUDA is not waited for."""
        if weight.ndim > 1:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
            norms = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
            scale = group["trust"] * norms[0] / norms[1]
            gradient = gradient * scale.masked_fill((norms[0] == 0) | (norms[1] == 0), 1.0)
        moved = group["momentum"] * self.state[weight]["moved"] + gradient
        stepped = weight - group["lr"] * moved
        if found_inf is not None:
            skip = found_inf.bool()
            moved = torch.where(skip, self.state[weight]["moved"], moved)
            stepped = torch.where(skip, weight, stepped)
        self.state[weight]["moved"].copy_(moved)
        weight.copy_(stepped)
