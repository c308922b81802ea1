"""Tells the kernel in which order a memory map is about to be read, for a file that does not fit into memory.

Without advice the kernel reads some megabytes around every row that is not in memory: random rows then read a thousand
times their own bytes. Where a file fits into memory that is welcome, since everything will be read sooner or later; so
such a map gets no advice. Advice changes no value, only what is read.

    read_at_random(features_ND)                 # before an epoch in random order
    read_soon(features_ND, rows)                # before each batch: its rows are read together, not one after the other
    read_in_order(features_ND)                  # before a pass from front to back
"""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import machine


def read_at_random(array: NDArray[Any]) -> bool:
    """Says that rows in any order are read next; returns whether `read_soon` is needed."""
    return _advise(array, "MADV_RANDOM")


def read_in_order(array: NDArray[Any]) -> None:
    """Says that the rows are read next from front to back."""
    _advise(array, "MADV_SEQUENTIAL")


def read_soon(array: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Starts to read these rows of a memory map, all at once, without waiting for them."""
    mapped = _map_of(array)
    if mapped is None or not len(rows):
        return
    rows = np.unique(rows)
    ends_R = np.flatnonzero(np.append(np.diff(rows) != 1, True))  # of the R runs of consecutive rows
    begins_R = np.append(0, ends_R[:-1] + 1)
    # The map begins with the file's first page, the array behind the file's header.
    first = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    row_bytes = array.strides[0]
    starts_R = (first + rows[begins_R] * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    stops_R = first + (rows[ends_R] + 1) * row_bytes
    for start, stop in zip(starts_R.tolist(), stops_R.tolist(), strict=True):
        mapped.madvise(mmap.MADV_WILLNEED, start, stop - start)


def _advise(array: NDArray[Any], advice: str) -> bool:
    mapped = _map_of(array)
    if mapped is None or array.nbytes <= machine.memory() // 2 or not hasattr(mmap, advice):
        return False
    mapped.madvise(getattr(mmap, advice))
    return True


def _map_of(array: Any) -> mmap.mmap | None:
    """Returns the memory map in which an array lies; None where it lies elsewhere."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array
