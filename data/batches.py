"""Batches: rows of a cache in a seeded order, as tensors on the training device.

Shapes   N videos in the cache   B videos in the batch   D features   L labels of the batch
         F frames in the cache   T frames of the longest video of the batch

At segment level an example is a segment, and "video" here means segment.

    cache columns -> order of the epoch (host) -> windows of a few hundred batches -> Batch

* The order depends on (seed, epoch) alone. A position is (epoch, batch), so a resumed epoch continues exactly.
* Features come from the memory map of a cache or, where the cache keeps none, from shards that are decoded again in
  every epoch (data/cache/stream.py). Then an epoch shuffles the shards, and the videos of some shards at a time.
* Several ranks share every batch; or, where each rank has a part of the videos (`Columns.parts`), a batch has videos of
  every part.
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

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import access
from data.cache import statistics
from data.cache.stream import Order, Stream
from data.labels import Labels, Ragged, as_tensor, on_device, pinned
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

    @property
    def stream(self) -> Stream | None:
        """What reads the features again in every epoch; None: they are in features_ND."""

    @property
    def parts(self) -> NDArray[np.int64] | None:
        """int64 [R + 1]: rank r of R takes the rows [parts[r], parts[r + 1]) of each epoch; None: of each batch a part.

        Without a stream, features_ND has the features of this rank's rows alone.
        """


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
            a batch has the same videos, each on exactly one rank. Where the ranks have parts, it gets as many videos,
            of its own part.
        world_size: number of ranks.
        drop_last: leave out the last videos if they do not fill a batch, so that all ranks have equally many batches; a
            split with fewer videos than one batch has one batch of all of them. Where the ranks have parts, the
            smallest one ends the epoch. False: the last batch is smaller, and some ranks may have no video of it.
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
        self._stream, self._parts = cache.stream, cache.parts if world_size > 1 else None
        self._first_row = 0  # of those in features_ND
        if cache.parts is not None and cache.stream is None:
            if world_size != len(cache.parts) - 1:
                raise ValueError(f"the features of rank {rank} alone are here, so all ranks must read the batches")
            self._first_row = int(cache.parts[rank])
        if self._stream is not None and world_size > 1 and self._parts is None:
            raise ValueError("several ranks read a stream by parts")
        if self._stream is not None and (np.diff(self._rows) < 0).any():
            raise ValueError("rows of a stream must be in ascending order")
        self._shuffler = ThreadPoolExecutor(1, thread_name_prefix="shuffle")
        self._orders_ahead: dict[int, Future[Order]] = {}
        self._frames, self._host_frame_offsets = frames, cache.frame_offsets
        self._host_features_ND = cache.features_ND
        self._features_ND = as_tensor(cache.features_ND)  # the same memory
        self._reads_apart = False  # whether the kernel reads no rows around those that are asked for
        self._fingerprint = f"{cache.fingerprint}-{self._first_row}" if self._first_row else cache.fingerprint
        self._residency = residency
        # Labels have a hundredth of the bytes of the features, so they are always on the device.
        self._labels = Labels.of(cache.label_offsets, cache.label_indices, self.device)
        self._rated: Labels | None = None
        if cache.rated_offsets is not None and cache.rated_indices is not None:
            self._rated = Labels.of(cache.rated_offsets, cache.rated_indices, self.device)

        self.num_videos = len(self._rows)  # in an epoch, on all ranks together
        self._part_size = self._part_of(batch_size)
        if self._parts is not None:
            self._share_by_parts(self._parts, drop_last)
            return
        if drop_last:
            if len(self._rows) < world_size:
                raise ValueError(f"drop_last needs a video for each of {world_size} ranks, but got {len(self._rows)}")
            self.num_videos = (self.num_videos - self.num_videos % batch_size) or self.num_videos
        whole, rest = divmod(self.num_videos, batch_size)
        self._num_own = whole * self._part_size + self._part_of(rest)

    def _part_of(self, num_videos: int, rank: int | None = None) -> int:
        """Returns how many of `num_videos` consecutive videos are on a rank; None: on this one."""
        return len(range(self._rank if rank is None else rank, num_videos, self._world_size))

    def _share_by_parts(self, parts: NDArray[np.int64], drop_last: bool) -> None:
        """Keeps the rows of this rank's part; all ranks count the batches of all, and so find the same number."""
        counts = np.diff(np.searchsorted(np.sort(self._rows), parts)).tolist()
        sizes = [self._part_of(self.batch_size, rank) for rank in range(self._world_size)]
        if drop_last:
            if not all(counts):
                raise ValueError(f"drop_last needs a video for each of {self._world_size} ranks, but got {counts}")
            steps = min(count // size for count, size in zip(counts, sizes, strict=True))
            counts = [steps * size or min(count, size) for count, size in zip(counts, sizes, strict=True)]
        self.num_videos, self._num_own = sum(counts), counts[self._rank]
        begin, end = parts[self._rank : self._rank + 2]
        self._rows = self._rows[(self._rows >= begin) & (self._rows < end)]

    def __len__(self) -> int:
        """Returns the number of batches of one epoch on this rank."""
        return -(-self._num_own // self._part_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the cache rows, int64, of this rank's videos in the order of an epoch."""
        return self._order(epoch).rows

    def _order(self, epoch: int) -> Order:
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, but got {epoch}")
        key = (self.seed, epoch) if self.shuffle else None
        if self._stream is not None:
            return self._stream.order(self._rows, key).cut(self._num_own)
        rows = self._rows if key is None else np.random.default_rng(key).permutation(self._rows)
        if self._parts is None and self._world_size > 1:
            positions = np.arange(self.num_videos) % self.batch_size
            rows = rows[: self.num_videos][positions % self._world_size == self._rank]
        rows = rows[: self._num_own]
        return Order(rows=rows, bounds=(0, len(rows)))

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
        starts = range(first_batch * self._part_size, len(order.rows), self._part_size)
        # On a CPU gathering 1024 videos takes 0.2 ms, a training step 100 ms: a thread that gathers ahead would gain
        # 0.2 %, and use a core that the training needs.
        access.read_in_order(self._host_features_ND)  # a copy on a GPU is made in order too
        resident_ND = self._resident()
        self._reads_apart = self.shuffle and access.read_at_random(self._host_features_ND)
        with ExitStack() as opened:
            spans = opened.enter_context(closing(self._spans(order, starts, resident_ND)))

            def inputs(start: int) -> tuple[Tensor, ...]:
                return self._inputs(next(spans), order.rows[start : start + self._part_size], epoch)

            on_gpu = resident_ND if self.device.type != "cpu" and self._host_frame_offsets is None else None
            ready = resident_ND is not None or self.device.type == "cpu"
            brought: Iterator[tuple[Tensor, ...]] = map(inputs, starts)
            if not ready:  # the thread that reads the spans ends before they are closed
                brought = opened.enter_context(closing(prefetched(inputs, starts, self.device)))
            for rows, labels, rated in self._windows(order.rows, starts):
                if self._before_batch is not None:
                    self._before_batch()
                yield Batch(
                    rows=rows,
                    # Where the features are on the GPU, the rows are too.
                    inputs=next(brought) if on_gpu is None else (on_gpu.index_select(0, self._own(rows)),),
                    label_offsets=labels[0],
                    label_indices=labels[1],
                    rated_offsets=None if rated is None else rated[0],
                    rated_indices=None if rated is None else rated[1],
                )

    def _spans(self, order: Order, starts: range, resident_ND: Tensor | None) -> Generator[list[_Span]]:
        """Yields where the features of each batch are: in one array, or in the windows of a stream that it touches."""
        parts = (order.rows[start : start + self._part_size] for start in starts)
        if self._stream is None:
            features_ND = self._features_ND if resident_ND is None else resident_ND
            for rows in parts:
                yield [(features_ND, self._begins_of(rows))]
            return
        first = starts[0] if starts else 0
        ends = [bound for bound in order.bounds if bound > first]
        with closing(self._stream.windows(order, first)) as windows:
            at, end, window = first, first, None
            for rows in parts:
                spans: list[_Span] = []
                while len(rows):
                    if at == end:
                        window, end = next(windows), ends.pop(0)
                        features = as_tensor(window.features)
                    assert window is not None
                    within, rows = rows[: end - at], rows[end - at :]
                    spans.append((features, window.begins_of(within)))
                    at += len(within)
                yield spans

    def _own(self, rows: Tensor) -> Tensor:
        """Returns the positions of rows in `_features_ND`."""
        return rows - self._first_row if self._first_row else rows

    def _begins_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where the features of some rows begin in `_features_ND`."""
        if self._host_frame_offsets is None:
            return rows - self._first_row
        begins: NDArray[np.int64] = self._host_frame_offsets[rows] - self._host_frame_offsets[self._first_row]
        return begins

    def _order_and_next(self, epoch: int) -> Order:
        """Returns the order of an epoch, and lets a thread shuffle for the epoch after it.

        5 million rows take 0.2 s, in which a GPU trains on half a million videos. numpy shuffles without the GIL.
        """
        if not self.shuffle:
            return self._order(epoch)
        ahead = self._orders_ahead.pop(epoch, None)
        order = self._order(epoch) if ahead is None else ahead.result()
        self._orders_ahead = {epoch + 1: self._shuffler.submit(self._order, epoch + 1)}
        return order

    def _windows(self, order: NDArray[np.int64], starts: range) -> Iterator[tuple[Tensor, Ragged, Ragged | None]]:
        """Yields (rows, labels, rated) of the batches that begin at `starts`; gathers many batches at once."""
        for window in range(0, len(starts), _BATCHES_PER_WINDOW):
            window_starts = starts[window : window + _BATCHES_PER_WINDOW]
            origin = window_starts[0]
            host_rows = order[origin : window_starts[-1] + self._part_size]
            bounds = [*(start - origin for start in window_starts), len(host_rows)]
            rows = on_device(self.device, host_rows)
            labels = self._labels.of_batches(host_rows, rows, bounds)
            rated = repeat(None) if self._rated is None else self._rated.of_batches(host_rows, rows, bounds)
            rows_of_batches = (rows[begin:end] for begin, end in pairwise(bounds))
            yield from zip(rows_of_batches, labels, rated, strict=False)

    def _resident(self) -> Tensor | None:
        """Returns the features on the device of the batches, or None where each batch is copied to it."""
        if self._stream is not None:
            return None
        if self.device.type == "cpu":
            return self._features_ND
        if self._residency is None:
            return None
        return self._residency.copy_of(self._fingerprint, self._features_ND, self.device)

    def _inputs(self, spans: list[_Span], rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
        """Returns the model's inputs for some rows, on the device of their features or in pinned memory."""
        if self._host_frame_offsets is None:
            return (self._gather(spans),)
        lengths_B = self._host_frame_offsets[rows + 1] - self._host_frame_offsets[rows]
        frame_BT, mask_BT = self._frames.select(lengths_B, rows, self.seed, epoch)
        first, frames = 0, list[_Span]()
        for features, begins in spans:
            wanted_BT = begins[:, None] + frame_BT[first : first + len(begins)]
            frames.append((features, wanted_BT.ravel()))
            first += len(begins)
        frames_BTD = self._gather(frames).view(*mask_BT.shape, -1)
        mask = pinned(torch.from_numpy(mask_BT), self.device).to(frames_BTD.device, non_blocking=True)
        return frames_BTD.mul_(mask[:, :, None]), mask

    def _gather(self, spans: list[_Span]) -> Tensor:
        """Returns features side by side, on their device; for a GPU, features on the host in pinned memory."""
        features, positions = spans[0]
        if self._reads_apart and features is self._features_ND:
            access.read_soon(self._host_features_ND, positions)  # all at once, not one after the other
        if features.device.type != "cpu" or (self.device.type != "cuda" and len(spans) == 1):
            return features.index_select(0, on_device(features.device, positions))
        length = sum(len(positions) for _, positions in spans)
        taken = torch.empty((length, *features.shape[1:]), dtype=features.dtype, pin_memory=self.device.type == "cuda")
        first = 0
        for features, positions in spans:
            part = taken[first : first + len(positions)]
            torch.index_select(features, 0, torch.from_numpy(positions), out=part)
            first += len(positions)
        return taken


_Span = tuple[Tensor, NDArray[np.int64]]  # features, and where in them some videos begin, or which of them are taken


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
