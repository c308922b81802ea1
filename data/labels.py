"""Ragged labels on the training device: those of a batch are gathered there, while the host waits for nothing.

Labels.of(cache.label_offsets, cache.label_indices, device).of_batches(rows of a few hundred batches) -> Ragged
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ragged = tuple[Tensor, Tensor]  # offsets from 0, and indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """The ragged labels of a cache on the device, and their offsets on the host too."""

    host_offsets: NDArray[np.int64]
    offsets: Tensor
    indices: Tensor

    @classmethod
    def of(cls, offsets: NDArray[np.int64], indices: NDArray[np.int32], device: torch.device) -> Self:
        """Copies the labels of a cache to the device."""
        host = np.asarray(offsets)
        return cls(host_offsets=host, offsets=as_tensor(offsets).to(device), indices=as_tensor(indices).to(device))

    def of_batches(self, host_rows: NDArray[np.int64], rows: Tensor, bounds: list[int]) -> Iterator[Ragged]:
        """Yields the labels of rows[begin:end] for each pair of bounds; gathers all at once and does not wait."""
        host_lengths = self.host_offsets[host_rows + 1] - self.host_offsets[host_rows]
        label_bounds = np.concatenate(([0], np.cumsum(host_lengths)))[bounds].tolist()
        offsets, indices = _gather_labels(rows, self.offsets, self.indices, label_bounds[-1])
        for (begin, end), (label_begin, label_end) in zip(pairwise(bounds), pairwise(label_bounds), strict=True):
            yield offsets[begin : end + 1] - label_begin, indices[label_begin:label_end]


def _gather_labels(
    rows: Tensor, label_offsets: Tensor, label_indices: Tensor, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Gathers the ragged labels of `rows`, in their order.

    The caller knows `num_labels`, so the host does not wait for the device.

    Returns:
        offsets int64 [len(rows) + 1] from 0, and indices int64 [num_labels].
    """
    begins = label_offsets[rows]
    lengths = label_offsets[rows + 1] - begins
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    # Label j of the result is at (begin of its video in the cache) + (j - offset of its video).
    shifts = torch.repeat_interleave(begins - offsets[:-1], lengths, output_size=num_labels)
    return offsets, label_indices[torch.arange(num_labels, device=rows.device) + shifts].to(torch.int64)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Returns a tensor that shares the array's memory, which may be a read-only memory map: nothing writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def on_device(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    """Copies an array to the device; the host does not wait for the copy."""
    return pinned(torch.from_numpy(array), device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor in pinned memory, which a GPU copies from asynchronously, if `device` is a GPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
