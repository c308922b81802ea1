"""Features that no disk keeps: every epoch decodes the shards again, a few of them ahead of the batches.

    stream.order(rows, key) -> Order: the rows of the epoch, cut into windows -> stream.windows(order) -> features

A window holds some shards as a whole: of an epoch in random order at least `buffer` videos. Its rows are next to each
other in the order, shuffled among themselves; the shards were shuffled before. The next window is decoded while batches
are taken from one, so at most two of them are in memory, and the blocks on their way from the processes that decode.

Shapes   N videos in the shards   S shards   W videos in a window   F frames of them   D columns of features
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.cache.decoding import decoded
from data.cache.journal import ShardSummary
from data.errors import ShardError
from data.frames import decode_blocks
from data.tfrecord.framing import content_hash
from data.tfrecord.shards import DecodedShard, Reading

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """The rows of an epoch, and where in them windows begin and end: window w is rows[bounds[w] : bounds[w + 1]]."""

    rows: Rows
    bounds: tuple[int, ...]

    def cut(self, length: int) -> Order:
        """Returns the first rows, with the windows that they need."""
        rows = self.rows[:length]
        bounds = [bound for bound in self.bounds if bound < len(rows)]
        return Order(rows=rows, bounds=(*bounds, len(rows)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """The features of some rows."""

    rows: Rows  # [W], ascending
    features: NDArray[Any]  # [W, D]; uint8 [F, D] where there are frames
    begins: Rows  # [W]: where the features of each row begin

    def begins_of(self, rows: Rows) -> Rows:
        """Returns where in `features` the given rows begin."""
        begins: Rows = self.begins[np.searchsorted(self.rows, rows)]
        return begins


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedShard:
    """A shard as it was when its labels were read."""

    path: str
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """The features of a split, read from its shards.

    Attributes:
        shards: of the split, in the order of their rows.
        offsets: int64 [S + 1]: the rows of shard s are [offsets[s], offsets[s + 1]).
        frame_offsets: int64 [N + 1] of the frames of all rows; None: a row is one vector.
        reading: how the shards are read.
        buffer: videos of a window in random order, at the least.
        num_bytes: of the shards.
        workers: processes that decode; None: as many as the machine allows, or this process if the shards are small.
    """

    shards: tuple[StreamedShard, ...]
    offsets: Rows
    frame_offsets: Rows | None
    reading: Reading
    buffer: int
    num_bytes: int
    workers: int | None = None

    @classmethod
    def of(cls, shards: Sequence[ShardSummary], frame_offsets: Rows | None, reading: Reading, **options: Any) -> Self:
        """Returns the stream of a cache's shards; `options` are the other attributes."""
        streamed = tuple(StreamedShard(path=shard.path, content_hash=shard.content_hash) for shard in shards)
        offsets = offsets_of(shards)
        return cls(shards=streamed, offsets=offsets, frame_offsets=frame_offsets, reading=reading, **options)

    @property
    def video_bytes(self) -> float:
        """The size of the features of a video, on average."""
        row_bytes = self.reading.schema.width * np.dtype(self.reading.dtype).itemsize
        if self.frame_offsets is None:
            return row_bytes
        return self.reading.schema.width * int(self.frame_offsets[-1]) / max(1, len(self.frame_offsets) - 1)

    def order(self, rows: Rows, key: tuple[int, int] | None) -> Order:
        """Returns the order of an epoch.

        Args:
            rows: to read, ascending.
            key: seed and number of an epoch in random order, which depends on nothing else; None: the rows as they are.
        """
        counts_S = np.bincount(self._shard_of(rows), minlength=len(self.shards))
        ends_S = np.cumsum(counts_S)
        used = np.flatnonzero(counts_S)
        if key is None:
            return Order(rows=rows, bounds=(0, *ends_S[used].tolist()))
        used = np.random.default_rng((*key, 1)).permutation(used)
        # The rows of a window that holds all videos are in the order in which a cache of everything gives them.
        generator = np.random.default_rng(key)
        shuffled, bounds = [rows[:0]], [0]
        first = size = 0
        for position, shard in enumerate(used, start=1):
            size += int(counts_S[shard])
            if size >= self.buffer or position == len(used):
                together = [rows[ends_S[s] - counts_S[s] : ends_S[s]] for s in np.sort(used[first:position])]
                shuffled.append(generator.permutation(np.concatenate(together)))
                bounds.append(bounds[-1] + size)
                first, size = position, 0
        return Order(rows=np.concatenate(shuffled), bounds=tuple(bounds))

    def windows(self, order: Order, first: int = 0) -> Generator[Window]:
        """Yields the windows of an order, but for those that end before position `first`.

        Raises:
            ShardError: a shard is not what it was, or is damaged now.
            UnreachableError: a shard cannot be read.
            CacheError: a process that decodes died.
        """
        wanted = [np.sort(order.rows[begin:end]) for begin, end in pairwise(order.bounds) if end > first]
        stopped = threading.Event()
        with closing(self._filled(wanted, stopped)) as filled, ThreadPoolExecutor(1, "stream") as thread:
            try:
                coming = thread.submit(next, filled, None)
                while (window := coming.result()) is not None:
                    coming = thread.submit(next, filled, None)
                    yield window
            finally:
                stopped.set()

    def _shard_of(self, rows: Rows) -> Rows:
        shards: Rows = np.searchsorted(self.offsets, rows, side="right") - 1
        return shards

    def _filled(self, wanted: list[Rows], stopped: threading.Event) -> Generator[Window]:
        jobs_of_windows = [self._jobs(rows) for rows in wanted]
        jobs = [job for of_window in jobs_of_windows for job in of_window]
        num_bytes = self.num_bytes * len(jobs) // max(1, len(self.shards))
        with closing(decoded(_decode, jobs, num_bytes=num_bytes, workers=self.workers)) as shards:
            for rows, jobs_of_window in zip(wanted, jobs_of_windows, strict=True):
                lengths = np.ones_like(rows)
                if self.frame_offsets is not None:
                    lengths = self.frame_offsets[rows + 1] - self.frame_offsets[rows]
                ends = np.cumsum(lengths)
                dtype = self.reading.dtype if self.frame_offsets is None else "uint8"
                features = np.empty((int(ends[-1]), self.reading.schema.width), dtype)
                filled = 0
                for job, pieces in zip(jobs_of_window, shards, strict=False):
                    for piece in pieces:
                        if stopped.is_set():
                            return
                        if filled + len(piece) > len(features):
                            raise changed(job.path)
                        features[filled : filled + len(piece)] = piece
                        filled += len(piece)
                yield Window(rows=rows, features=features, begins=ends - lengths)

    def _jobs(self, rows: Rows) -> list[_Job]:
        shard_N = self._shard_of(rows)
        jobs = []
        for number in np.unique(shard_N):
            shard, own = self.shards[number], rows[shard_N == number] - self.offsets[number]
            whole = len(own) == self.offsets[number + 1] - self.offsets[number]
            jobs.append(_Job(shard=shard, reading=self.reading, rows=None if whole else own))
        return jobs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    shard: StreamedShard
    reading: Reading
    rows: Rows | None  # of the shard, ascending; None: all

    @property
    def path(self) -> str:
        return self.shard.path


def offsets_of(shards: Sequence[ShardSummary]) -> Rows:
    """Returns the first row of each shard, and the number of rows: int64 [shards + 1]."""
    return np.cumsum([0, *(shard.num_videos for shard in shards)])


def _decode(job: _Job) -> Iterator[NDArray[Any]]:
    """Yields the features of a shard's rows, block by block; the next row follows where the last one ends."""
    first, crcs = 0, []
    for block in decode_blocks(job.path, job.reading):
        crcs.append(block.crc_N)
        last = first + len(block.ids)
        if job.rows is None:
            yield block.features_ND
        else:
            yield _features(block, job.rows[(job.rows >= first) & (job.rows < last)] - first)
        first = last
    if content_hash(np.concatenate(crcs)) != job.shard.content_hash:
        raise changed(job.path)


def _features(block: DecodedShard, rows: Rows) -> NDArray[Any]:
    if block.frame_offsets is None:
        return block.features_ND[rows]
    kept_N = np.zeros(len(block.ids), np.bool_)
    kept_N[rows] = True
    return block.features_ND[np.repeat(kept_N, np.diff(block.frame_offsets))]


def changed(path: str) -> ShardError:
    """Returns, to be raised, the error about a shard that has changed since its labels were read."""
    return ShardError(path, "changed since its labels were read; put the old shard back, or start a new search")
