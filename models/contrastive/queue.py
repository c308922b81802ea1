"""The queue of keys, the negatives of MoCo v1 and v2.

Shapes   B videos in the batch   F dimensions of an embedding   K keys in the queue
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The last K keys; new keys replace the oldest. As in the paper, it starts with K random directions.

    Both buffers are saved with the model. A batch may have any number of keys, also more than K.
    """

    keys: Tensor
    head: Tensor

    def __init__(self, size: int, dimension: int, generator: torch.Generator) -> None:
        """Draws the first K = `size` keys."""
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dimension, generator=generator), dim=1))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))  # index of the oldest key

    @torch.no_grad()
    def push(self, keys_BF: Tensor) -> None:
        """Replaces the oldest keys by these; of more than K keys, by the last K."""
        last = keys_BF[-len(self.keys) :].to(self.keys.dtype)
        slots = (self.head + torch.arange(len(last), device=self.head.device)) % len(self.keys)
        self.keys.index_copy_(0, slots, last)
        self.head.copy_((self.head + len(last)) % len(self.keys))
