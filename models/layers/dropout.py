"""Dropout that draws its mask fast on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Sets each value to zero with probability `p` in training, and divides the others by 1 - p.

    On a CPU, torch draws its mask number by number on one thread: 23 ms of a training step of 190 ms (1024 x 2304
    values, bf16). Here each value takes 16 random bits, which needs 5 ms and rounds p to a multiple of 1/65536.
    """

    def __init__(self, p: float) -> None:
        """Takes p in [0, 1)."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype -> the same shape and dtype."""
        if not self.training or not self.p:
            return x
        if x.is_cuda:
            return F.dropout(x, self.p)
        dropped = min(round(self.p * 65536), 65535)  # of the 65536 values of 16 bits
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
        return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))
