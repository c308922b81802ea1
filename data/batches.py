"""Batches: rows of a cache in a seeded order, as tensors on the training device.

Shapes   N videos in the cache   B videos in the batch   D features   L labels of the batch
         F frames in the cache   T frames of the longest video of the batch

At segment level an example is a segment, and "video" here means segment.

    cache columns -> order of the epoch (host) -> windows of a few hundred batches -> Batch

* The order depends on (seed, epoch) alone. A position is (epoch, batch), so a resumed epoch continues exactly.
* Features keep their stored type (float16), which halves the bytes to move; the model's first layer converts them.
* Frames are padded with zeros to the longest video of the batch; data/sampling.py selects the frames.
* Labels stay ragged: label_indices[label_offsets[b] : label_offsets[b + 1]] are the classes of video b.
* Features that are resident on the device (on a CPU the memory map itself; on a GPU a copy, see data/residency.py) are
  gathered there, once per batch. Otherwise a thread gathers the next batches into pinned memory, and copies them to the
  GPU on a stream of their own, while the GPU works.
* No step waits for the device: the host computes where a batch's labels begin and end from its own copy of the label
  offsets, once per window.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import access
from data.cache import statistics
from data.prefetch import prefetched
from data.residency import Residency, with_index
from data.sampling import ALL, FramesConfig

_BATCHES_PER_WINDOW = 256  # batches whose labels are gathered at once: ten kernels per window, and one per batch


class Columns(statistics.Columns, Protocol):
    """The columns that batches read; a `data.cache.store.Cache` and a decoded shard have them."""

    @property
    def fingerprint(self) -> str:
        """The name of the content: caches with the same fingerprint share one copy on a GPU."""

    @property
    def rated_offsets(self) -> NDArray[np.int64] | None:
        """int64 [N + 1]: offsets of the rated classes, as label_offsets; None: every class is rated."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """B videos, all tensors on the requested device. No later batch reuses their memory."""

    rows: Tensor  # int64 [B], the videos' rows in the cache
    inputs: tuple[Tensor, ...]  # what a model takes: (features_BD,) as stored, or (frames_BTD uint8, mask_BT bool)
    label_offsets: Tensor  # int64 [B + 1], from 0 to L
    label_indices: Tensor  # int64 [L], classes
    rated_offsets: Tensor | None = None  # int64 [B + 1]: of the rated classes; None: all classes are rated
    rated_indices: Tensor | None = None

    @property
    def features_BD(self) -> Tensor:
        """The input of a model at video level: float16 by default."""
        (features_BD,) = self.inputs
        return features_BD


class Batches:
    """The batches of one split for one rank.

    Args:
        cache: the decoded columns.
        batch_size: videos in a batch, on all ranks together; at least one for each rank.
        shuffle: True: a new order every epoch; False: the order of `rows`.
        seed: of the orders. Two objects with the same seed and rows give the same batches, on any machine and device.
        rows: the rows of the cache to use, each at most once; None: all of them.
        rank: of this process; it gets the videos rank, rank + world_size, ... of every batch. For any number of ranks
            a batch has the same videos, each on exactly one rank.
        world_size: number of ranks.
        drop_last: leave out the last videos if they do not fill a batch, so that all ranks have equally many batches; a
            split with fewer videos than one batch has one batch of all of them. False: the last batch is smaller, and
            some ranks may have no video of it.
        device: the device of the batches.
        residency: keeps the copies of features on GPUs; each epoch asks it for one. None: no features are resident on a
            GPU. On a CPU batches are always gathered from the memory map.
        frames: which frames of a video a batch has, if the cache has frames.
        before_batch: called before each batch; what it raises ends the epoch. None: nothing is called.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        cache: Columns,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rows: NDArray[np.int64] | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        residency: Residency | None = None,
        frames: FramesConfig = ALL,
        before_batch: Callable[[], None] | None = None,
    ) -> None:
        num_rows = len(cache.label_offsets) - 1
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), but got {rank=} and {world_size=}")
        if batch_size < world_size:
            raise ValueError(f"batch_size must be at least 1 for each of {world_size} ranks, but got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, but got {seed}")
        if rows is not None:
            _check_rows(rows, num_rows)

        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self._before_batch = before_batch
        self.device = with_index(device)
        self._rows = np.arange(num_rows) if rows is None else np.asarray(rows, np.int64)
        self._rank, self._world_size = rank, world_size
        self._shuffler = ThreadPoolExecutor(1, thread_name_prefix="shuffle")
        self._orders_ahead: dict[int, Future[NDArray[np.int64]]] = {}
        self._frames, self._host_frame_offsets = frames, cache.frame_offsets
        self._host_features_ND = cache.features_ND
        self._features_ND = _as_tensor(cache.features_ND)  # the same memory
        self._reads_apart = False  # whether the kernel reads no rows around those that are asked for
        self._fingerprint, self._residency = cache.fingerprint, residency
        # Labels have a hundredth of the bytes of the features, so they are always on the device.
        self._labels = _Labels.of(cache.label_offsets, cache.label_indices, self.device)
        self._rated: _Labels | None = None
        if cache.rated_offsets is not None and cache.rated_indices is not None:
            self._rated = _Labels.of(cache.rated_offsets, cache.rated_indices, self.device)

        self.num_videos = len(self._rows)  # in an epoch, on all ranks together
        if drop_last:
            if len(self._rows) < world_size:
                raise ValueError(f"drop_last needs a video for each of {world_size} ranks, but got {len(self._rows)}")
            self.num_videos = (self.num_videos - self.num_videos % batch_size) or self.num_videos
        self._part_size = self._part_of(batch_size)

    def _part_of(self, num_videos: int) -> int:
        """Returns how many of `num_videos` consecutive videos are on this rank."""
        return len(range(self._rank, num_videos, self._world_size))

    def __len__(self) -> int:
        """Returns the number of batches of one epoch on this rank."""
        whole, rest = divmod(self.num_videos, self.batch_size)
        return whole + (self._part_of(rest) > 0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the cache rows, int64, of this rank's videos in the order of an epoch."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, but got {epoch}")
        rows = self._rows
        if self.shuffle:
            rows = np.random.default_rng((self.seed, epoch)).permutation(rows)
        rows = rows[: self.num_videos]
        if self._world_size == 1:
            return rows
        positions = np.arange(self.num_videos) % self.batch_size
        return rows[positions % self._world_size == self._rank]

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch from `first_batch` on, the same as in the whole epoch.

        Args:
            epoch: number of the epoch, from 0.
            first_batch: in [0, len(self)]; len(self) yields nothing.

        Raises:
            ValueError: an argument is out of its range.
        """
        if not 0 <= first_batch <= len(self):
            raise ValueError(f"first_batch must be in [0, {len(self)}], but got {first_batch}")
        order = self._order_and_next(epoch)
        starts = range(first_batch * self._part_size, len(order), self._part_size)
        # On a CPU gathering 1024 videos takes 0.2 ms, a training step 100 ms: a thread that gathers ahead would gain
        # 0.2 %, and use a core that the training needs.
        access.read_in_order(self._host_features_ND)  # a copy on a GPU is made in order too
        resident_ND = self._resident()
        self._reads_apart = self.shuffle and access.read_at_random(self._host_features_ND)
        brought: Iterator[tuple[Tensor, ...]] = iter(())
        if resident_ND is None:
            brought = prefetched(partial(self._inputs, self._features_ND, order, epoch), starts, self.device)
        for start, (rows, labels, rated) in zip(starts, self._windows(order, starts), strict=True):
            if self._before_batch is not None:
                self._before_batch()
            yield Batch(
                rows=rows,
                inputs=next(brought) if resident_ND is None else self._inputs(resident_ND, order, epoch, start, rows),
                label_offsets=labels[0],
                label_indices=labels[1],
                rated_offsets=None if rated is None else rated[0],
                rated_indices=None if rated is None else rated[1],
            )

    def _order_and_next(self, epoch: int) -> NDArray[np.int64]:
        """Returns `order(epoch)`, and lets a thread shuffle for the epoch after it.

        5 million rows take 0.2 s, in which a GPU trains on half a million videos. numpy shuffles without the GIL.
        """
        if not self.shuffle:
            return self.order(epoch)
        ahead = self._orders_ahead.pop(epoch, None)
        order = self.order(epoch) if ahead is None else ahead.result()
        self._orders_ahead = {epoch + 1: self._shuffler.submit(self.order, epoch + 1)}
        return order

    def _windows(self, order: NDArray[np.int64], starts: range) -> Iterator[tuple[Tensor, _Ragged, _Ragged | None]]:
        """Yields (rows, labels, rated) of the batches that begin at `starts`; gathers many batches at once."""
        for window in range(0, len(starts), _BATCHES_PER_WINDOW):
            window_starts = starts[window : window + _BATCHES_PER_WINDOW]
            origin = window_starts[0]
            host_rows = order[origin : window_starts[-1] + self._part_size]
            bounds = [*(start - origin for start in window_starts), len(host_rows)]
            rows = _to(self.device, host_rows)
            labels = self._labels.of_batches(host_rows, rows, bounds)
            rated = repeat(None) if self._rated is None else self._rated.of_batches(host_rows, rows, bounds)
            rows_of_batches = (rows[begin:end] for begin, end in pairwise(bounds))
            yield from zip(rows_of_batches, labels, rated, strict=False)

    def _resident(self) -> Tensor | None:
        """Returns the features on the device of the batches, or None where each batch is copied to it."""
        if self.device.type == "cpu":
            return self._features_ND
        if self._residency is None:
            return None
        return self._residency.copy_of(self._fingerprint, self._features_ND, self.device)

    def _inputs(
        self, features_ND: Tensor, order: NDArray[np.int64], epoch: int, start: int, rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Returns the model's inputs for the batch at `start`, on the device of `features_ND` or in pinned memory.

        `rows` are the batch's rows, where they are already on that device.
        """
        host_rows = order[start : start + self._part_size]
        if self._host_frame_offsets is None:
            self._read_soon(features_ND, host_rows)
            return (self._gather(features_ND, host_rows) if rows is None else features_ND.index_select(0, rows),)
        begins_B = self._host_frame_offsets[host_rows]
        lengths_B = self._host_frame_offsets[host_rows + 1] - begins_B
        frame_BT, mask_BT = self._frames.select(lengths_B, host_rows, self.seed, epoch)
        host_frames = (begins_B[:, None] + frame_BT).ravel()
        self._read_soon(features_ND, host_frames)
        frames_BTD = self._gather(features_ND, host_frames).view(*mask_BT.shape, -1)
        mask = _pinned(torch.from_numpy(mask_BT), self.device).to(frames_BTD.device, non_blocking=True)
        return frames_BTD.mul_(mask[:, :, None]), mask

    def _read_soon(self, features_ND: Tensor, rows: NDArray[np.int64]) -> None:
        """Lets the kernel read all these rows at once, if it would read one after the other."""
        if self._reads_apart and features_ND is self._features_ND:
            access.read_soon(self._host_features_ND, rows)

    def _gather(self, features_ND: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Returns rows of the features, on their device; for a GPU, rows of features on the host in pinned memory."""
        if features_ND.device.type != "cpu" or self.device.type != "cuda":
            return features_ND.index_select(0, _to(features_ND.device, rows))
        taken = torch.empty((len(rows), features_ND.shape[1]), dtype=features_ND.dtype, pin_memory=True)
        return torch.index_select(features_ND, 0, torch.from_numpy(rows), out=taken)


_Ragged = tuple[Tensor, Tensor]  # offsets from 0, and indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Labels:
    """The ragged labels of a cache on the device, and their offsets on the host too."""

    host_offsets: NDArray[np.int64]
    offsets: Tensor
    indices: Tensor

    @classmethod
    def of(cls, offsets: NDArray[np.int64], indices: NDArray[np.int32], device: torch.device) -> Self:
        host = np.asarray(offsets)
        return cls(host_offsets=host, offsets=_as_tensor(offsets).to(device), indices=_as_tensor(indices).to(device))

    def of_batches(self, host_rows: NDArray[np.int64], rows: Tensor, bounds: list[int]) -> Iterator[_Ragged]:
        """Yields the labels of rows[begin:end] for each pair of bounds; gathers all at once and does not wait."""
        host_lengths = self.host_offsets[host_rows + 1] - self.host_offsets[host_rows]
        label_bounds = np.concatenate(([0], np.cumsum(host_lengths)))[bounds].tolist()
        offsets, indices = _gather_labels(rows, self.offsets, self.indices, label_bounds[-1])
        for (begin, end), (label_begin, label_end) in zip(pairwise(bounds), pairwise(label_bounds), strict=True):
            yield offsets[begin : end + 1] - label_begin, indices[label_begin:label_end]


def sample_rows(num_videos: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Draws a sample of rows: the same on every machine, and a subset of every larger sample of the same seed.

    Args:
        num_videos: number of rows to draw from.
        fraction: in (0, 1]; the sample has round(fraction * num_videos) rows, at least 1 where there is one.
        seed: of the draw.

    Returns:
        int64, ascending, each row at most once.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], but got {fraction}")
    size = min(num_videos, max(1, round(fraction * num_videos)))
    return np.sort(np.random.default_rng(seed).permutation(num_videos)[:size])


def _check_rows(rows: NDArray[np.int64], num_rows: int) -> None:
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"rows must be one list of integers, but got {rows.dtype} of shape {rows.shape}")
    if len(rows) and not 0 <= rows.min() <= rows.max() < num_rows:
        raise ValueError(f"rows must be in [0, {num_rows}), but got {rows.min()} to {rows.max()}")
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"rows must name no video twice, but got {len(rows) - len(np.unique(rows))} repeated")


def _as_tensor(array: NDArray[Any]) -> Tensor:
    """Returns a tensor that shares the array's memory, which may be a read-only memory map: nothing writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _to(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    """Copies an array to the device; the host does not wait for the copy."""
    return _pinned(torch.from_numpy(array), device).to(device, non_blocking=True)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor in pinned memory, which a GPU copies from asynchronously, if `device` is a GPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


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
