"""Adam and AdamW, as torch implements them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Adam, AdamW

from models.optim.groups import decayed


def adam(parameters: Iterable[Tensor], *, lr: float, beta1: float, beta2: float, epsilon: float) -> Adam:
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980) in torch's fused form, whose step can be skipped."""
    return Adam(parameters, lr=lr, betas=(beta1, beta2), eps=epsilon, fused=True)


def adamw(
    parameters: Iterable[Tensor], *, lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float
) -> AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv 1711.05101), of matrices only; fused."""
    return AdamW(decayed(parameters, weight_decay), lr=lr, betas=(beta1, beta2), eps=epsilon, fused=True)
