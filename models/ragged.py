"""Ragged lists of classes: for each video of a batch its labels, or the classes that it is rated for.

The list of video b is `indices[offsets[b]:offsets[b + 1]]`, each class at most once. `indices` may be longer than the
lists together: what follows them belongs to no video. So a CUDA graph, whose shapes are fixed, can take batches with
any number of labels. No function here makes CUDA wait for the host or the host for CUDA.

Shapes   B videos in the batch   C classes   L entries of `indices`
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rows_of(offsets: Tensor, indices: Tensor) -> Tensor:
    """[L] int64: the video of each entry; B for an entry behind the lists, which is no video of the batch."""
    lengths = torch.diff(offsets, append=offsets.new_full((1,), len(indices)))
    return torch.repeat_interleave(lengths, output_size=len(indices))  # with its size known, CUDA does not synchronise


def cells_of(offsets: Tensor, indices: Tensor, num_classes: int) -> Tensor:
    """[B, C] bool: whether the class is in the list of the video."""
    rows = rows_of(offsets, indices)
    cells_BC = torch.zeros(len(offsets), num_classes, dtype=torch.bool, device=indices.device)  # the last row: no video
    cells_BC[rows, indices] = torch.ones_like(rows, dtype=torch.bool)  # a host's True would be copied
    return cells_BC[:-1]


def at_cells(values_BC: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """[L] the values at the cells (row, class) of the entries; for an entry of no video, some value of the batch."""
    return values_BC[rows.clamp(max=len(values_BC) - 1), indices]


def add_by_video(sums_B: Tensor, rows: Tensor, values_L: Tensor) -> Tensor:
    """[B] `sums_B` plus the values of each video's entries; those of no video are left out."""
    return F.pad(sums_B, (0, 1)).index_add(0, rows, values_L)[:-1]
