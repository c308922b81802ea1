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
        lr: float | Tensor,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        foreach: bool | None = None,
    ) -> None:
        """Allocates the mean square of every parameter, and with a momentum its last movement.

        Args:
            parameters: on their device.
            lr: learning rate; `models.optim.build` makes it a scalar on the device for parameters on CUDA.
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
        """Takes a step, or none where the attribute `found_inf` (set by models.optim.optimizers.step) is 1.

        A skipped step has zero gradients, both decays at 1 and no movement, so the host need not know of it.
        """
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            never = torch.zeros((), device=parameters[0].device)
            found_inf = getattr(self, "found_inf", never).to(parameters[0].dtype)
            _zero_gradients(parameters, found_inf)
            decay, momentum = (
                torch.full_like(found_inf, group[name]).masked_fill_(found_inf.bool(), 1.0)
                for name in ("decay", "momentum")
            )
            foreach = parameters[0].is_cuda if self.foreach is None else self.foreach
            step = self._step_foreach if foreach else self._step_each
            step(group, parameters, decay, momentum, 1 - found_inf)

    def _step_each(
        self, group: dict[str, Any], parameters: list[Tensor], decay: Tensor, momentum: Tensor, share: Tensor
    ) -> None:
        """Updates one parameter after the other; `share` is that of the movement, 1 or 0."""
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            state["square"].mul_(decay).addcmul_(gradient, gradient, value=1 - group["decay"])
            root = (state["square"] + group["epsilon"]).sqrt_()
            if group["momentum"]:
                state["moved"].mul_(momentum).addcdiv_(gradient, root, value=group["lr"])
                parameter.addcmul_(state["moved"], share, value=-1)
            else:
                parameter.addcdiv_(gradient, root, value=-group["lr"])

    def _step_foreach(
        self, group: dict[str, Any], parameters: list[Tensor], decay: Tensor, momentum: Tensor, share: Tensor
    ) -> None:
        """Updates all parameters at once, in few kernels; `share` is that of the movement, 1 or 0."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = [self.state[p]["square"] for p in parameters]
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
        steps = torch._foreach_add(squares, group["epsilon"])
        torch._foreach_sqrt_(steps)
        steps = torch._foreach_div(gradients, steps)
        torch._foreach_mul_(steps, group["lr"])
        if group["momentum"]:
            moved = [self.state[p]["moved"] for p in parameters]
            torch._foreach_mul_(moved, momentum)
            torch._foreach_add_(moved, steps)
            steps = torch._foreach_mul(moved, share)
        torch._foreach_sub_(parameters, steps)


def _zero_gradients(parameters: list[Tensor], found_inf: Tensor) -> None:
    """Sets the gradients to 0, NaN included, where found_inf is 1; else they stay as they are, bit for bit.

    As integers, because a product with 0 then has no NaN; on a CPU `masked_fill_` takes three times as long.
    """
    for dtype, as_integer in ((torch.float32, torch.int32), (torch.float64, torch.int64)):
        bits = [p.grad.view(as_integer) for p in parameters if p.grad is not None and p.grad.dtype == dtype]
        if bits:
            torch._foreach_mul_(bits, (1 - found_inf).to(as_integer))
