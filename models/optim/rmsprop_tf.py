"""RMSProp as TensorFlow 1 implements it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RMSpropTF(Optimizer):
    """RMSProp as TensorFlow 1 implements it; the settings of lidalei/youtube-8m were found with it.

    square = decay * square + (1 - decay) * g^2        starts at ones
    moved  = momentum * moved + lr * g / sqrt(square + epsilon)
    weight = weight - moved

    NOTE: torch.optim.RMSprop starts the square at zero, adds epsilon outside the root and multiplies by the learning
    rate after the momentum. At g = 0.1, its first step is 30 times larger.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        foreach: bool | None = None,
    ) -> None:
        """Allocates the mean square of every parameter, and with a momentum its last movement.

        Args:
            parameters: on their device.
            lr: learning rate.
            decay: of the mean square.
            momentum: of the movement; 0 keeps no buffer.
            epsilon: added to the mean square, inside the root.
            foreach: whether one kernel updates all parameters; None: on CUDA alone, as a CPU is faster without.
        """
        super().__init__(parameters, {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon})
        self.foreach = foreach
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["square"] = torch.ones_like(parameter)
                if momentum:
                    self.state[parameter]["moved"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes a step, or none where the attribute `found_inf` (set by models.optim.optimizers.step) is 1."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            foreach = parameters[0].is_cuda if self.foreach is None else self.foreach
            if foreach:
                self._step_foreach(group, parameters, found_inf)
            elif found_inf is None or not found_inf.item():
                for parameter in parameters:
                    self._step_one(group, parameter, parameter.grad)

    def _step_one(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        state["square"].mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
        root = (state["square"] + group["epsilon"]).sqrt_()
        if group["momentum"]:
            state["moved"].mul_(group["momentum"]).addcdiv_(gradient, root, value=group["lr"])
            parameter.sub_(state["moved"])
        else:
            parameter.addcdiv_(gradient, root, value=-group["lr"])

    def _step_foreach(self, group: dict[str, Any], parameters: list[Tensor], found_inf: Tensor | None) -> None:
        """Updates all parameters at once. A skipped step is a step with zero gradients and both decays at 1."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = [self.state[p]["square"] for p in parameters]
        decay, momentum = group["decay"], group["momentum"]
        if found_inf is not None:
            skip = found_inf.bool()
            for gradient in gradients:
                gradient.masked_fill_(skip, 0.0)
            decay, momentum = torch.where(skip, 1.0, decay), torch.where(skip, 1.0, momentum)
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
        roots = torch._foreach_add(squares, group["epsilon"])
        torch._foreach_sqrt_(roots)
        if not group["momentum"]:
            torch._foreach_addcdiv_(parameters, gradients, roots, value=-group["lr"])
            return
        moved = [self.state[p]["moved"] for p in parameters]
        torch._foreach_mul_(moved, momentum)
        torch._foreach_addcdiv_(moved, gradients, roots, value=group["lr"])
        step = moved if found_inf is None else torch._foreach_mul(moved, torch.where(skip, 0.0, 1.0))
        torch._foreach_sub_(parameters, step)
