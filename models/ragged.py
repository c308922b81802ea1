"""Lists of classes, one for each video of a batch, side by side: its labels, or the classes it is rated for.

Those of video b are `indices[offsets[b]:offsets[b + 1]]`, each class at most once. Nothing here makes CUDA wait for the
host or the host for CUDA.

Shapes   B videos in the batch   C classes   L entries of all lists
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(offsets: Tensor, indices: Tensor) -> Tensor:
    """[L] int64: the video of each entry; the known output size spares CUDA a synchronisation."""
    return torch.repeat_interleave(offsets.diff(), output_size=len(indices))


def cells_of(offsets: Tensor, indices: Tensor, num_classes: int) -> Tensor:
    """[B, C] bool: whether the class is in the video's list."""
    rows = rows_of(offsets, indices)
    cells_BC = torch.zeros(len(offsets) - 1, num_classes, dtype=torch.bool, device=indices.device)
    cells_BC[rows, indices] = torch.ones_like(rows, dtype=torch.bool)  # a host's True would be copied over
    return cells_BC
