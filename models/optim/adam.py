"""Adam and AdamW, as torch implements them, with steps that a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Adam, AdamW

from models.optim.groups import decayed


def adam(parameters: Iterable[Tensor], *, lr: float | Tensor, beta1: float, beta2: float, epsilon: float) -> Adam:
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980) in torch's fused form, whose step can be skipped."""
    return Adam(parameters, betas=(beta1, beta2), eps=epsilon, **_form(lr))


def adamw(
    parameters: Iterable[Tensor], *, lr: float | Tensor, beta1: float, beta2: float, epsilon: float, weight_decay: float
) -> AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv 1711.05101), of matrices only; fused."""
    return AdamW(decayed(parameters, weight_decay), betas=(beta1, beta2), eps=epsilon, **_form(lr))


def _form(lr: float | Tensor) -> dict[str, Any]:
    """Torch's fused form; a rate on the device says that the step may become part of a CUDA graph."""
    return {"lr": lr, "fused": True, "capturable": isinstance(lr, Tensor)}
