"""Ragged lists of classes: for each video of a batch its labels, or the classes that it is rated for.

The list of video b is `indices[offsets[b]:offsets[b + 1]]`, each class at most once. No function here makes CUDA wait
for the host or the host for CUDA.

Shapes   B videos in the batch   C classes   L entries of all lists together
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(offsets: Tensor, indices: Tensor) -> Tensor:
    """[L] int64: the video of each entry. With a known output size, CUDA does not synchronise."""
    return torch.repeat_interleave(offsets.diff(), output_size=len(indices))


def cells_of(offsets: Tensor, indices: Tensor, num_classes: int) -> Tensor:
    """[B, C] bool: whether the class is in the list of the video."""
    rows = rows_of(offsets, indices)
    cells_BC = torch.zeros(len(offsets) - 1, num_classes, dtype=torch.bool, device=indices.device)
    cells_BC[rows, indices] = torch.ones_like(rows, dtype=torch.bool)  # a host's True would be copied
    return cells_BC
