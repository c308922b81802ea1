"""Conversions of dtype and container, and work on a few rows at a time, that models, losses and metrics share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 17  # numbers in a piece; 512 KiB in float32


def as_tensor(values: Any) -> Tensor:
    """A tensor, detached from its graph, or an array as a tensor of its own.

    An array is copied: it may be a read-only memory map, which torch cannot wrap.
    """
    return values.detach() if isinstance(values, Tensor) else torch.tensor(values)


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors, each of them [R, any width], from first to last.

    On a CPU few rows at a time, so that intermediate values stay in its cache and need no new memory, which the system
    fills with zeros first; elsewhere all at once.
    """
    longest, widest = len(tensors[0]), max(tensor.shape[1] for tensor in tensors)
    rows = max(1, _PIECE // widest if tensors[0].device.type == "cpu" else longest)
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
