"""Builds a cache: shards -> one file per column, appended in the order of the shards.

    journal.jsonl        a line per shard: videos, labels, content hash, CRC32C of what was appended for it
    features.npy         [N, D] float16 or float32; of frames [F, D] uint8
    frame_lengths.bin    [N] int32, of frames only -> frame_offsets.npy at the end
    label_lengths.bin    [N] int32                 -> label_offsets.npy at the end
    label_indices.npy    [number of labels] int32
    rated_lengths.bin    rated_indices.npy         as the labels: the classes rated, of segments only
    ids.bin              ids of each shard, as wide as its longest -> ids.npy at the end

N counts examples: videos, or at segment level their rated segments. All of it lies in a working folder that becomes the
cache by one rename, its manifest written last. A build that was killed goes on behind the last shard whose bytes still
have the checksum of its line in the journal, so neither a half-written line nor pages lost with the power are ever
taken for data, and no shard costs an fsync.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, cast

import crc32c
import numpy as np
from numpy.typing import NDArray

from data import remote
from data.cache.eviction import BUILDING, GIGABYTE, MANIFEST, make_room, room
from data.cache.workers import map_in_order
from data.errors import CacheError, ShardError
from data.frames import decode_together
from data.schema import Schema
from data.tfrecord.framing import count_records
from data.tfrecord.shards import DecodedShard, decode_shard

FORMAT = 1  # of the files below; another number is another cache

_IN_PROCESS_BYTES = 256 << 20  # fewer bytes are decoded here in the 0.3 s that processes take to start; threads share
# one core whatever their number (280 thousand videos/s with one, 230 with two)
_TOGETHER_BYTES = 4 << 20  # of small shards that are decoded as one: what numpy takes to begin is then little


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as it was found: its bytes count as changed when size or version do."""

    path: str  # local path or URL
    size: int  # bytes
    version: str  # modification time in ns, or the etag and the like of a URL


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a cache holds, and nothing else."""

    shards: tuple[Shard, ...]
    schema: Schema
    dtype: Literal["float16", "float32"] = "float16"
    require_labels: bool = True

    @property
    def columns(self) -> tuple[Column, ...]:
        """The files of the cache."""
        return columns_of(self.schema, self.dtype)

    @property
    def key(self) -> str:
        """The name of the cache's folder."""
        parts = [
            FORMAT,
            [asdict(shard) for shard in self.shards],
            list(self.schema.features.items()),
            self.schema.num_classes,
            self.dtype,
            self.require_labels,
            *_level(self.schema),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _level(schema: Schema) -> list[Any]:
    """What names the level in keys and fingerprints: nothing at video level, so that older caches keep theirs."""
    return [] if schema.level == "video" else [schema.level, schema.max_frames]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What the cache holds of a shard: a line of the journal, an entry of the manifest."""

    path: str
    num_videos: int = 0
    num_labels: int = 0
    num_frames: int = 0
    num_rated: int = 0
    id_width: int = 1  # bytes of the longest id
    content_hash: str = ""
    checksum: int = 0  # CRC32C of the shard's bytes in the columns
    error: tuple[str, int | None, str | None] | None = None  # reason, offset, key: the shard was skipped

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Self:
        """The record of a journal's line or a manifest's entry."""
        error = line["error"]
        return cls(**line | {"error": None if error is None else (error[0], error[1], error[2])})

    def shard_error(self) -> ShardError | None:
        """The error for which the shard was skipped."""
        return None if self.error is None else ShardError(self.path, *self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """How far a build is; also seen by those who wait for another process that builds the same cache."""

    shards_done: int  # skipped ones included
    shards_total: int
    num_videos: int  # in the shards done
    num_skipped: int
    waiting_for_lock: bool = False  # another process does the work
    removed: tuple[str, ...] = ()  # older caches that made room for this one, a sentence each

    def after(self, record: ShardRecord) -> Self:
        """One shard later."""
        return replace(
            self,
            shards_done=self.shards_done + 1,
            num_videos=self.num_videos + record.num_videos,
            num_skipped=self.num_skipped + (record.error is not None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A file of a cache in the making: every shard appends its entries."""

    name: str  # of the array in a `Part`
    count: str  # the field of ShardRecord that says how many entries a shard has
    dtype: str  # "": bytes as long as the shard's longest
    width: int | None = None  # values of an entry; None: it is one value
    working: str  # the file
    finished: str  # what becomes of it

    def dtype_in(self, record: ShardRecord) -> np.dtype[Any]:
        """Of a shard's entries."""
        return np.dtype(self.dtype or f"S{record.id_width}")

    def num_bytes(self, record: ShardRecord) -> int:
        """Of a shard's entries."""
        return int(getattr(record, self.count)) * (self.width or 1) * self.dtype_in(record).itemsize


def columns_of(schema: Schema, dtype: str) -> tuple[Column, ...]:
    """The columns of a cache, in the order of a shard's checksum."""

    def values(name: str, count: str, dtype: str, width: int | None = None) -> Column:
        file = f"{name}.npy"
        return Column(name=name, count=count, dtype=dtype, width=width, working=file, finished=file)

    def lengths(name: str) -> Column:
        working, finished = f"{name}_lengths.bin", f"{name}_offsets.npy"
        return Column(name=f"{name}_lengths", count="num_videos", dtype="<i4", working=working, finished=finished)

    ids = Column(name="ids", count="num_videos", dtype="", working="ids.bin", finished="ids.npy")
    labels = lengths("label"), values("label_indices", "num_labels", "<i4")
    if schema.level == "video":
        return values("features", "num_videos", dtype, schema.width), *labels, ids
    frames = values("features", "num_frames", "|u1", schema.width), lengths("frame")
    rated = (lengths("rated"), values("rated_indices", "num_rated", "<i4")) if schema.level == "segment" else ()
    return *frames, *labels, *rated, ids


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """The rows of one shard (or of several) as the columns hold them."""

    arrays: Mapping[str, NDArray[Any]]  # by the columns' names, in their order

    @classmethod
    def of(cls, shard: DecodedShard, columns: Sequence[Column]) -> Self:
        """The rows of a decoded shard."""
        arrays = {
            "features": shard.features_ND,
            "frame_lengths": _lengths(shard.frame_offsets),
            "label_lengths": _lengths(shard.label_offsets),
            "label_indices": shard.label_indices,
            "rated_lengths": _lengths(shard.rated_offsets),
            "rated_indices": shard.rated_indices,
            "ids": np.array(shard.ids, dtype=np.bytes_),
        }
        return cls(arrays={column.name: cast(NDArray[Any], arrays[column.name]) for column in columns})

    def record(self, path: str, content_hash: str) -> ShardRecord:
        """What is noted of them."""
        sizes = {name: len(array) for name, array in self.arrays.items()}
        return ShardRecord(
            path=path,
            num_videos=sizes["ids"],
            num_labels=sizes["label_indices"],
            num_frames=sizes["features"] if "frame_lengths" in sizes else 0,
            num_rated=sizes.get("rated_indices", 0),
            id_width=self.arrays["ids"].itemsize,
            content_hash=content_hash,
            checksum=self.checksum(),
        )

    def checksum(self) -> int:
        """CRC32C over the bytes of all arrays, one after the other."""
        value = 0
        for array in self.arrays.values():
            value = crc32c.crc32c(np.ascontiguousarray(array).view(np.uint8).data, value) if array.size else value
        return value


def _lengths(offsets: NDArray[np.int64] | None) -> NDArray[np.int32] | None:
    return None if offsets is None else np.diff(offsets).astype(np.int32)


def build(
    recipe: Recipe,
    directory: Path,
    *,
    on_bad_shard: Literal["fail", "skip"],
    workers: int | None,
    progress: Callable[[BuildProgress], None],
) -> None:
    """Decodes the recipe's shards into `directory`, which must not exist. The caller holds the lock.

    Raises:
        ShardError: a shard is bad and `on_bad_shard` is "fail". Nothing is left behind.
        CacheError: the disk is too small or a shard changed meanwhile (nothing is left behind), or a process died
            (what is decoded is kept for the next call).
    """
    working = working_directory(directory)
    working.mkdir(parents=True, exist_ok=True)
    try:
        with _Columns(working, recipe) as columns:
            records = columns.records
            removed = _check_disk(recipe, directory, num_done=len(records))
            so_far = replace(progress_of(records, len(recipe.shards)), removed=tuple(removed))
            progress(so_far)
            with closing(_decoded(recipe, len(records), workers)) as parts:
                for shard, part in zip(recipe.shards[len(records) :], parts, strict=True):
                    if isinstance(part, ShardError):
                        if on_bad_shard == "fail":
                            raise part
                        columns.skip(part)
                    else:
                        columns.append(shard.path, *part)
                    so_far = so_far.after(records[-1])
                    progress(so_far)
            columns.finish()
        for shard in recipe.shards:
            if find_shard(shard.path) != shard:
                raise CacheError(f"{shard.path}: the shard changed while it was read; start again when it is complete")
        _write_manifest(working, recipe, records)
    except ChildProcessError as error:  # what is written stays, the next build goes on behind it
        raise CacheError(f"{error}; if the machine is short of memory, give fewer workers") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.rmtree(working)
        raise CacheError(
            f"{directory.parent}: the disk became full while the cache was written; free space there or give another "
            "folder for the cache"
        ) from None
    except (ShardError, CacheError):
        shutil.rmtree(working)
        raise
    os.replace(working, directory)
    _sync(directory.parent)
    finished = {column.finished for column in recipe.columns}
    for name in {"journal.jsonl", *(column.working for column in recipe.columns)} - finished:
        (directory / name).unlink()


def working_directory(directory: Path) -> Path:
    """Where a cache is while it is built."""
    return directory.with_name(directory.name + BUILDING)


def read_journal(working: Path) -> list[ShardRecord]:
    """The shards that a build, running or killed, has written so far; an unfinished last line does not count."""
    try:
        lines = (working / "journal.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(ShardRecord.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            break
    return records


def progress_of(records: Sequence[ShardRecord], shards_total: int, waiting_for_lock: bool = False) -> BuildProgress:
    """Sums up a journal."""
    nothing = BuildProgress(
        shards_done=0, shards_total=shards_total, num_videos=0, num_skipped=0, waiting_for_lock=waiting_for_lock
    )
    return reduce(BuildProgress.after, records, nothing)


def shard_exists(path: str) -> bool:
    """Whether there is such a file."""
    try:
        find_shard(path)
    except ShardError:
        return False
    return True


def find_shard(path: str) -> Shard:
    """Looks at a shard without reading it.

    Raises:
        ShardError: there is no such file, or it cannot be looked at.
    """
    try:
        if "://" not in path:
            status = os.stat(path)
            return Shard(path=path, size=status.st_size, version=str(status.st_mtime_ns))
        filesystem, inner = remote.filesystem(path)
        return Shard(path=path, size=int(filesystem.size(inner) or 0), version=str(filesystem.ukey(inner)))
    except FileNotFoundError:
        raise ShardError(path, "no such file") from None
    except remote.errors(OSError) as error:
        raise ShardError(path, f"cannot be read: {error}") from error


# ---------------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    paths: tuple[str, ...]
    schema: Schema
    dtype: str
    require_labels: bool


def _decoded(recipe: Recipe, num_done: int, workers: int | None) -> Generator[tuple[str, Part] | ShardError]:
    """(content hash, rows) of the shards that are not done yet, in order; errors are yielded, not raised."""
    shards = recipe.shards[num_done:]
    jobs = [
        _Job(paths=paths, schema=recipe.schema, dtype=recipe.dtype, require_labels=recipe.require_labels)
        for paths in _together(shards, recipe.schema)
    ]
    small = workers is None and sum(shard.size for shard in shards) < _IN_PROCESS_BYTES
    num_workers = min(len(jobs), workers or _num_cpus())
    if small or num_workers <= 1:
        yield from chain.from_iterable(map(_decode, jobs))
        return
    # Rows come back through pipes, at 2 GB/s: measured faster than files that the other side reads and deletes.
    with closing(map_in_order(_decode, jobs, num_workers)) as outcomes:
        for job in jobs:
            try:
                yield from next(outcomes)
            except ChildProcessError as error:
                raise ChildProcessError(f"{job.paths[0]}: decoding stopped: {error}") from None


def _together(shards: Sequence[Shard], schema: Schema) -> list[tuple[str, ...]]:
    """The paths in order, those of small shards of frames together: as many as have _TOGETHER_BYTES."""
    most = _TOGETHER_BYTES if schema.level == "frame" else 0
    groups: list[list[str]] = []
    size = 0
    for shard in shards:
        if not groups or size + shard.size > most:
            groups.append([])
            size = 0
        groups[-1].append(shard.path)
        size += shard.size
    return [tuple(paths) for paths in groups]


def _decode(job: _Job) -> list[tuple[str, Part] | ShardError]:
    shards = decode_together(job.paths, job.schema, require_labels=job.require_labels)
    return [_outcome(path, shard, job) for path, shard in zip(job.paths, shards, strict=True)]


def _outcome(path: str, shard: DecodedShard | ShardError, job: _Job) -> tuple[str, Part] | ShardError:
    if isinstance(shard, ShardError):
        return shard
    try:
        if job.schema.level == "video":
            shard = replace(shard, features_ND=_stored(path, shard.features_ND, job))
    except ShardError as error:
        return error
    return shard.content_hash, Part.of(shard, columns_of(job.schema, job.dtype))


def _stored(path: str, features_ND: NDArray[np.float32], job: _Job) -> NDArray[Any]:
    """The features in the cache's type.

    Raises:
        ShardError: a value is too large for it.
    """
    with np.errstate(over="ignore"):  # found and named below
        stored_ND = features_ND.astype(job.dtype, copy=False)
    # All exponent bits set is infinity; on integers the check is as fast as a copy.
    if stored_ND.dtype == np.float16 and (stored_ND.view(np.uint16) & 0x7C00 == 0x7C00).any():
        # Rare, so the shard is read again: told the type, the decoder finds the record and the words.
        decode_shard(path, job.schema, require_labels=job.require_labels, out=stored_ND)
    return stored_ND


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ----------------------------------------------------------------------------------------------------- writing


class _Columns:
    """The files of a cache in the making, open at the end of the last whole shard."""

    def __init__(self, working: Path, recipe: Recipe) -> None:
        self._working, self._recipe, self._columns = working, recipe, recipe.columns
        self.records: list[ShardRecord] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            names = [column.working for column in self._columns]
            for name in (*names, "journal.jsonl"):
                (self._working / name).touch()
            self._files = {name: stack.enter_context(open(self._working / name, "r+b")) for name in names}
            self._journal = stack.enter_context(open(self._working / "journal.jsonl", "r+b"))
            self._write_headers()
            for record in read_journal(self._working):
                if not self._is_whole(record):
                    break
                self.records.append(record)
            self._cut()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, path: str, content_hash: str, part: Part) -> None:
        """Writes a shard's rows behind the others, then its line."""
        for column in self._columns:
            file, array = self._files[column.working], part.arrays[column.name]
            file.write(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
            file.flush()
        self._note(part.record(path, content_hash))

    def skip(self, error: ShardError) -> None:
        """Notes that a bad shard is left out, whole."""
        self._note(ShardRecord(path=error.path, error=(error.reason, error.offset, error.key)))

    def finish(self) -> None:
        """Writes what is known only now, and makes sure that all columns are on the disk."""
        self._write_headers()
        for column in self._columns:
            if column.name.endswith("_lengths"):
                lengths = np.fromfile(self._working / column.working, np.int32)
                np.save(self._working / column.finished, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
            elif column.name == "ids":
                np.save(self._working / column.finished, self._all_ids(column))
            _sync(self._working / column.finished)

    def _note(self, record: ShardRecord) -> None:
        self._journal.write(json.dumps(asdict(record)).encode() + b"\n")
        self._journal.flush()
        self.records.append(record)

    def _write_headers(self) -> None:
        """Headers for as many rows as there are; numpy pads them so that more rows need no more room."""
        for column in self._columns:
            file = self._files[column.working]
            file.seek(0)
            if column.working == column.finished:
                count = sum(getattr(record, column.count) for record in self.records)
                shape = (count,) if column.width is None else (count, column.width)
                header = {"descr": np.dtype(column.dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()

    def _is_whole(self, record: ShardRecord) -> bool:
        """Whether the files hold the next shard of the recipe as its line says; reads on behind it."""
        if len(self.records) == len(self._recipe.shards) or record.path != self._recipe.shards[len(self.records)].path:
            return False
        arrays = {
            column.name: np.frombuffer(self._files[column.working].read(column.num_bytes(record)), np.uint8)
            for column in self._columns
        }
        return Part(arrays=arrays).checksum() == record.checksum

    def _cut(self) -> None:
        """Truncates every file behind the last whole shard and goes there."""
        self._write_headers()
        for column in self._columns:
            file = self._files[column.working]
            size = file.tell() + sum(column.num_bytes(record) for record in self.records)
            file.truncate(size)
            file.seek(size)
        self._journal.seek(0)
        self._journal.truncate()
        self._journal.writelines(json.dumps(asdict(record)).encode() + b"\n" for record in self.records)
        self._journal.flush()

    def _all_ids(self, column: Column) -> NDArray[np.bytes_]:
        """The ids of all shards, as wide as the longest."""
        ids = np.zeros(
            sum(record.num_videos for record in self.records),
            f"S{max((record.id_width for record in self.records), default=1)}",
        )
        file = self._files[column.working]
        file.seek(0)
        row = 0
        for record in self.records:
            ids[row : row + record.num_videos] = np.frombuffer(
                file.read(column.num_bytes(record)), column.dtype_in(record)
            )
            row += record.num_videos
        return ids


def _write_manifest(working: Path, recipe: Recipe, records: Sequence[ShardRecord]) -> None:
    content = [list(recipe.schema.features.items()), recipe.schema.num_classes, *_level(recipe.schema)]
    content += [[record.num_videos, record.content_hash] for record in records if record.error is None]
    manifest = {
        "format": FORMAT,
        "features": dict(recipe.schema.features),
        "num_classes": recipe.schema.num_classes,
        "level": recipe.schema.level,
        "max_frames": recipe.schema.max_frames,
        "dtype": recipe.dtype,
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "num_videos": sum(record.num_videos for record in records),
        "columns": {column.finished: (working / column.finished).stat().st_size for column in recipe.columns},
        "shards": [asdict(record) for record in records],
    }
    path = working / MANIFEST
    path.write_text(json.dumps(manifest, indent=1))
    _sync(path)
    _sync(working)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_disk(recipe: Recipe, folder: Path, *, num_done: int) -> list[str]:
    """Makes the room that the rest will take, by the density of the largest shards; returns what was removed for it.

    Raises:
        CacheError: it will not fit.
    """
    shards = recipe.shards[num_done:]
    counted_videos = counted_bytes = 0
    for shard in sorted(shards, key=lambda shard: -shard.size)[:3]:
        try:
            counted_videos += count_records(shard.path)
            counted_bytes += shard.size
            break
        except ShardError:  # decoding will say so, in order and by the rule for bad shards
            continue
    size = sum(shard.size for shard in shards)
    if recipe.schema.level == "video":
        # Features, and offsets, ids and a few labels; 5 % of the whole for shards that are denser than the largest.
        video_bytes = recipe.schema.width * np.dtype(recipe.dtype).itemsize + 64
        size = int(counted_videos / max(counted_bytes, 1) * size * video_bytes)
    # Frames take no more room here than there, unless the shards are compressed.
    need = int(1.05 * size) + (1 << 20)
    directory = folder.parent
    removed = make_room(directory, need, folder) if need > room(directory) else []
    if need > (free := room(directory)):
        raise CacheError(
            f"{directory}: the cache of {len(recipe.shards)} shards needs about {need / GIGABYTE:.2f} GB more, but "
            f"{free / GIGABYTE:.2f} GB are free; free space there or give another folder for the cache "
            "($TUNER_CACHE, or data.cache in the yaml)"
        )
    return removed
