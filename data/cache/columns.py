"""The files of a cache: one for each column, to which every shard appends its entries.

    journal.jsonl        a line per shard: videos, labels, content hash, CRC32C of what was appended for it
    features.npy         [N, D] float16 or float32; of frames [F, D] uint8
    frame_lengths.bin    [N] int32, of frames only -> frame_offsets.npy at the end
    label_lengths.bin    [N] int32                 -> label_offsets.npy at the end
    label_indices.npy    [number of labels] int32
    rated_lengths.bin    rated_indices.npy         like the labels: the rated classes, of segments only
    ids.bin              ids of each shard, as wide as its longest -> ids.npy at the end
    moments.npy          [shards, 1 + 2 D] float64 or int64: what the statistics need of features that are not kept; a
                         cache without features has it in the place of features.npy

N counts examples: videos, or at segment level rated segments. `Column` describes one of these files, `Part` holds the
rows of one shard, and `ColumnFiles` writes the files and the journal (data/cache/journal.py). The manifest of a
finished cache lists its columns with their sizes, and its shards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import crc32c
import numpy as np
from numpy.typing import NDArray

from data.cache.journal import JOURNAL, ShardSummary, line_of, read_journal
from data.cache.recipe import Recipe
from data.cache.statistics import (
    ByteMoments,
    Moments,
    Totals,
    as_row,
    counts,
    from_row,
    keep_totals,
    merged,
    moments_of,
)
from data.errors import ShardError
from data.schema import Schema
from data.tfrecord.shards import DecodedShard

MANIFEST, STATISTICS = "manifest.json", "statistics.npz"
_PIECE = 1 << 24  # bytes per read call
BUILDING = ".building"  # the ending of a cache's folder while it is built


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One file of a cache while it is built."""

    name: str  # of the array in a `Part`
    count: str  # the field of ShardSummary that says how many entries a shard has
    dtype: str  # "": bytes as wide as the shard's longest
    width: int | None = None  # values of an entry; None: an entry is one value
    working: str  # name of the file during the build
    finished: str  # name of the file that it becomes at the end

    def dtype_in(self, summary: ShardSummary) -> np.dtype[Any]:
        """Returns the type of a shard's entries."""
        return np.dtype(self.dtype or f"S{summary.id_width}")

    def num_bytes(self, summary: ShardSummary) -> int:
        """Returns the size of a shard's entries."""
        return int(getattr(summary, self.count)) * (self.width or 1) * self.dtype_in(summary).itemsize


def columns_of(schema: Schema, dtype: str, features: bool = True) -> tuple[Column, ...]:
    """Returns the columns of a cache, in the order in which a shard's checksum takes them.

    Args:
        schema: of the records.
        dtype: of the features at video level.
        features: whether the cache keeps them.
    """

    def values(name: str, count: str, dtype: str, width: int | None = None) -> Column:
        file = f"{name}.npy"
        return Column(name=name, count=count, dtype=dtype, width=width, working=file, finished=file)

    def lengths(name: str) -> Column:
        working, finished = f"{name}_lengths.bin", f"{name}_offsets.npy"
        return Column(name=f"{name}_lengths", count="num_videos", dtype="<i4", working=working, finished=finished)

    ids = Column(name="ids", count="num_videos", dtype="", working="ids.bin", finished="ids.npy")
    labels = lengths("label"), values("label_indices", "num_labels", "<i4")
    of_videos = schema.level == "video"
    kept = values("moments", "num_moments", "<f8" if of_videos else "<i8", 1 + 2 * schema.width)
    if of_videos:
        return values("features", "num_videos", dtype, schema.width) if features else kept, *labels, ids
    frames = values("features", "num_frames", "|u1", schema.width) if features else kept, lengths("frame")
    rated = (lengths("rated"), values("rated_indices", "num_rated", "<i4")) if schema.level == "segment" else ()
    return *frames, *labels, *rated, ids


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """The rows of one shard as the columns hold them."""

    arrays: Mapping[str, NDArray[Any]]  # by the columns' names, in their order

    @classmethod
    def of(cls, shard: DecodedShard, columns: Sequence[Column], moments: Moments | ByteMoments | None = None) -> Self:
        """Takes the rows of a decoded shard, and the moments of its features where they are a column."""
        arrays = {
            "features": shard.features_ND,
            "moments": None if moments is None else as_row(moments)[None],
            "frame_lengths": _lengths(shard.frame_offsets),
            "label_lengths": _lengths(shard.label_offsets),
            "label_indices": shard.label_indices,
            "rated_lengths": _lengths(shard.rated_offsets),
            "rated_indices": shard.rated_indices,
            "ids": np.array(shard.ids, dtype=np.bytes_),
        }
        return cls(arrays={column.name: cast(NDArray[Any], arrays[column.name]) for column in columns})

    def totals(self, num_classes: int) -> Totals:
        """Sums up the features and counts the labels."""
        features = self.arrays.get("features")
        return Totals(
            num_videos=len(self.arrays["ids"]),
            moments=from_row(self.arrays["moments"].ravel()) if features is None else moments_of(features),
            label_counts_C=counts(self.arrays["label_indices"], num_classes),
            rated_counts_C=None if (rated := self.arrays.get("rated_indices")) is None else counts(rated, num_classes),
        )

    def checksum(self, value: int = 0) -> int:
        """Returns the CRC32C over the bytes of all arrays, one after the other, that continues from `value`."""
        for array in self.arrays.values():
            value = checksum(array, value)
        return value


def checksum(array: NDArray[Any], value: int = 0) -> int:
    """Returns the CRC32C over the bytes of an array that continues from `value`."""
    return int(crc32c.crc32c(_bytes(array), value)) if array.size else value


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).data if array.size else memoryview(b"")


def _lengths(offsets: NDArray[np.int64] | None) -> NDArray[np.int32] | None:
    return None if offsets is None else np.diff(offsets).astype(np.int32)


@dataclass(slots=True)
class _Begun:
    """The features of a shard that were written ahead of the rest."""

    rows: int = 0
    bytes: int = 0
    checksum: int = 0
    moments: Moments | ByteMoments | None = None


class ColumnFiles:
    """The files of a cache while it is built, open at the end of the last whole shard.

    Attributes:
        summaries: the shards that the files hold; on entering those that an earlier build wrote as a whole.
        totals: of these shards; None where there are none.
    """

    def __init__(self, working: Path, recipe: Recipe) -> None:
        self._working, self._recipe = working, recipe
        self._columns = columns_of(recipe.schema, recipe.dtype, recipe.features)
        self.summaries: list[ShardSummary] = []
        self.totals: Totals | None = None
        self._begun = _Begun()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            names = [column.working for column in self._columns]
            for name in (*names, JOURNAL):
                (self._working / name).touch()
            self._files = {name: stack.enter_context(open(self._working / name, "r+b")) for name in names}
            self._journal = stack.enter_context(open(self._working / JOURNAL, "r+b"))
            self._write_headers()
            for summary in read_journal(self._working):
                if not self._is_next(summary) or (totals := self._totals(summary)) is None:
                    break
                self.summaries.append(summary)
                self._add(totals)
            self._truncate()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def extend(self, features: NDArray[Any], moments: Moments | ByteMoments) -> None:
        """Writes the first features of a shard whose other rows follow; `append` or `skip` ends the shard."""
        self._files[self._columns[0].working].write(_bytes(features))
        begun = self._begun
        begun.rows, begun.bytes = begun.rows + len(features), begun.bytes + features.nbytes
        begun.checksum, begun.moments = checksum(features, begun.checksum), merged(begun.moments, moments)

    def append(
        self, path: str, content_hash: str, part: Part, totals: Totals, bad_records: Sequence[ShardError] = ()
    ) -> None:
        """Writes a shard's rows after those of the other shards, then its line in the journal.

        Args:
            path: the shard.
            content_hash: of its records.
            part: its rows, without the features that `extend` has written.
            totals: of the part.
            bad_records: those that were left out.
        """
        for column in self._columns:
            file = self._files[column.working]
            file.write(_bytes(part.arrays[column.name]))
            file.flush()
        sizes = {name: len(array) for name, array in part.arrays.items()}
        summary = ShardSummary(
            path=path,
            num_videos=sizes["ids"],
            num_labels=sizes["label_indices"],
            num_frames=int(part.arrays["frame_lengths"].sum()) if "frame_lengths" in sizes else 0,
            num_rated=sizes.get("rated_indices", 0),
            id_width=part.arrays["ids"].itemsize,
            content_hash=content_hash,
            checksum=part.checksum(self._begun.checksum),
            bad_records=tuple((error.reason, error.offset, error.key) for error in bad_records),
        )
        self._add(totals.with_moments(self._begun.moments))
        self._note(summary)

    def skip(self, error: ShardError) -> None:
        """Notes that a bad shard is left out as a whole."""
        file = self._files[self._columns[0].working]
        file.seek(-self._begun.bytes, os.SEEK_CUR)
        file.truncate()
        self._note(ShardSummary(path=error.path, error=(error.reason, error.offset, error.key)))

    def finish(self) -> None:
        """Writes the numbers of rows, the offsets, the ids and the statistics, and flushes them to the disk."""
        self._write_headers()
        for column in self._columns:
            if column.name.endswith("_lengths"):
                lengths = np.fromfile(self._working / column.working, np.int32)
                np.save(self._working / column.finished, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
            elif column.name == "ids":
                np.save(self._working / column.finished, self._all_ids(column))
            sync(self._working / column.finished)
        if self.totals is not None:
            keep_totals(self._working / STATISTICS, self.totals)

    def _add(self, totals: Totals) -> None:
        self.totals = totals if self.totals is None else self.totals.merge(totals)

    def _note(self, summary: ShardSummary) -> None:
        self._journal.write(line_of(summary))
        self._journal.flush()
        self.summaries.append(summary)
        self._begun = _Begun()

    def _write_headers(self) -> None:
        """Writes headers for as many rows as there are; numpy pads them, so they keep their size as rows are added."""
        for column in self._columns:
            file = self._files[column.working]
            file.seek(0)
            if column.working == column.finished:
                count = sum(getattr(summary, column.count) for summary in self.summaries)
                shape = (count,) if column.width is None else (count, column.width)
                header = {"descr": np.dtype(column.dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()

    def _is_next(self, summary: ShardSummary) -> bool:
        """Whether this is the recipe's next shard."""
        done = len(self.summaries)
        return done < len(self._recipe.shards) and summary.path == self._recipe.shards[done].path

    def _totals(self, summary: ShardSummary) -> Totals | None:
        """Reads the rows of a shard, in pieces; returns None unless they have the checksum of its line."""
        value, arrays = 0, {}
        moments: Moments | ByteMoments | None = None
        for column in self._columns:
            row_bytes = (column.width or 1) * column.dtype_in(summary).itemsize
            left, pieces = column.num_bytes(summary), []
            while data := self._files[column.working].read(min(left, max(_PIECE // row_bytes, 1) * row_bytes)):
                value, left = crc32c.crc32c(data, value), left - len(data)
                if left % row_bytes:
                    return None
                values = np.frombuffer(data, column.dtype_in(summary))
                if column.name == "features":
                    moments = merged(moments, moments_of(values.reshape(-1, self._recipe.schema.width)))
                else:
                    pieces.append(values)
            arrays[column.name] = np.concatenate(pieces or [np.zeros(0, column.dtype_in(summary))])
        if value != summary.checksum:
            return None
        schema = self._recipe.schema
        if "features" in arrays:  # they have been summed up in pieces
            arrays["features"] = np.zeros((0, schema.width), self._columns[0].dtype)
        return Part(arrays=arrays).totals(schema.num_classes).with_moments(moments)

    def _truncate(self) -> None:
        """Truncates every file after the last whole shard and seeks to its end."""
        self._write_headers()
        for column in self._columns:
            file = self._files[column.working]
            size = file.tell() + sum(column.num_bytes(summary) for summary in self.summaries)
            file.truncate(size)
            file.seek(size)
        self._journal.seek(0)
        self._journal.truncate()
        self._journal.writelines(line_of(summary) for summary in self.summaries)
        self._journal.flush()

    def _all_ids(self, column: Column) -> NDArray[np.bytes_]:
        """Returns the ids of all shards, as wide as the longest."""
        ids = np.zeros(
            sum(summary.num_videos for summary in self.summaries),
            f"S{max((summary.id_width for summary in self.summaries), default=1)}",
        )
        file = self._files[column.working]
        file.seek(0)
        row = 0
        for summary in self.summaries:
            ids[row : row + summary.num_videos] = np.frombuffer(
                file.read(column.num_bytes(summary)), column.dtype_in(summary)
            )
            row += summary.num_videos
        return ids


def remove_working_files(directory: Path, columns: Sequence[Column]) -> None:
    """Removes from a finished cache the files that only its build needed."""
    finished = {column.finished for column in columns}
    for name in {JOURNAL, *(column.working for column in columns)} - finished:
        (directory / name).unlink()


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
