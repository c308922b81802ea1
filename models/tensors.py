"""Conversions of dtype and container that models, losses and metrics share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """A tensor, detached from its graph, or an array as a tensor of its own.

    An array is copied: it may be a read-only memory map, which torch cannot wrap.
    """
    return values.detach() if isinstance(values, Tensor) else torch.tensor(values)


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
