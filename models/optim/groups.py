"""Parameter groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def decayed(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in groups for torch's optimizers: matrices with the decay, biases and gains without.

    NOTE: MoCo v1 and v2 decay every parameter; v3 and most later work leave out biases and gains, as here.
    """
    parameters = list(parameters)
    if not weight_decay:
        return [{"params": parameters, "weight_decay": 0.0}]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
