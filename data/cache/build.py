"""Builds a cache: decodes shards, appends their rows to the columns, and publishes the result by one rename.

The columns (data/cache/columns.py) lie in a working folder that becomes the cache by one rename; its manifest is
written last. A build that was killed or ended by an error resumes after the last shard whose bytes still
have the checksum of its line in the journal. So neither a half-written line nor pages lost in a power failure are ever
taken for data, and no shard costs an fsync.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data import machine
from data.cache.columns import (
    BUILDING,
    MANIFEST,
    ColumnFiles,
    Part,
    columns_of,
    remove_working_files,
    sync,
)
from data.cache.eviction import GIGABYTE, available_bytes, evict
from data.cache.journal import ShardSummary
from data.cache.progress import BuildProgress
from data.cache.recipe import FORMAT, Recipe, Shard, find_each, fingerprint_of
from data.cache.statistics import ByteMoments, Moments, Totals, moments_of
from data.cache.workers import map_in_order
from data.errors import CacheError, DataError, ShardError
from data.frames import decode_blocks, decode_together
from data.ranges import is_whole
from data.schema import Schema
from data.tfrecord.framing import BLOCK_BYTES, count_records
from data.tfrecord.shards import DecodedShard, Reading, joined, too_many

# Fewer bytes are decoded in this process, in the 0.3 s that other processes take to start. Threads are no help: they
# share one core whatever their number (280 thousand videos/s with one, 230 with two).
_IN_PROCESS_BYTES = 256 << 20
# What decoding may take of the memory: this share, a process of it so much (a block, its features and an interpreter),
# and features of a process that wait to be written up to so many blocks.
_MEMORY_SHARE, _WORKER_BYTES, _MAX_AHEAD = 4, 640 << 20, 16
_TOGETHER_BYTES = 4 << 20  # small shards are decoded as one up to this size: numpy's start is then little of the time


def build(
    recipe: Recipe,
    directory: Path,
    *,
    on_bad_shard: Literal["fail", "skip"],
    max_bad_records: int,
    workers: int | None,
    progress: Callable[[BuildProgress], None],
) -> None:
    """Decodes the recipe's shards into `directory`, which must not exist. The caller holds the lock.

    Args:
        recipe: what to decode.
        directory: the folder of the new cache.
        on_bad_shard: "fail" raises, "skip" leaves the bad shard out.
        max_bad_records: of all shards that are left out; more are an error. 0: the first one makes its shard bad.
        workers: processes that decode; None: as many as the machine allows, or this process alone if the shards are
            small.
        progress: called at the start and after every shard.

    Raises:
        ShardError: a shard is bad and `on_bad_shard` is "fail"; or too many records are bad.
        CacheError: the disk is too small, a process died, or a shard changed meanwhile.
        UnreachableError: a shard cannot be read, whatever `on_bad_shard` is.

    After an error the next call resumes after the shards that are decoded; nothing is left behind where there are none,
    where the disk became full, and where a shard changed.
    """
    working = working_directory(directory)
    working.mkdir(parents=True, exist_ok=True)
    columns = columns_of(recipe.schema, recipe.dtype)
    summaries: list[ShardSummary] = []
    try:
        with ColumnFiles(working, recipe) as files:
            summaries = files.summaries
            if on_bad_shard == "fail":
                raise_first_error(summaries)  # an earlier build skipped it; its other shards are kept
            refuse_too_many(summaries, max_bad_records)
            removed = _check_disk(recipe, directory, num_done=len(summaries))
            so_far = replace(BuildProgress.of(summaries, len(recipe.shards)), removed=tuple(removed))
            progress(so_far)
            with closing(_decoded(recipe, len(summaries), max_bad_records, workers)) as pieces:
                for piece in pieces:
                    if isinstance(piece, ShardError):
                        if on_bad_shard == "fail":
                            raise piece
                        files.skip(piece)
                    elif isinstance(piece, _Whole):
                        files.append(piece.path, piece.content_hash, piece.part, piece.totals, piece.bad_records)
                        refuse_too_many(summaries, max_bad_records)
                    else:
                        files.extend(piece.features, piece.moments)
                        continue
                    so_far = so_far.after(summaries[-1])
                    progress(so_far)
            files.finish()
        for shard, now in zip(recipe.shards, find_each([shard.path for shard in recipe.shards]), strict=True):
            if now != shard:
                shutil.rmtree(working)  # the changed shard makes another cache
                raise CacheError(f"{shard.path}: the shard changed while it was read; start again when it is complete")
        _write_manifest(working, recipe, summaries)
    except ChildProcessError as error:  # the working folder stays, and the next build resumes from it
        raise CacheError(
            f"{error}; if the machine is short of memory, let fewer processes decode "
            "(data.decode_workers, or TUNER_DECODE_WORKERS)"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.rmtree(working)
        raise CacheError(
            f"{directory.parent}: the disk became full while the cache was written; free space there or give another "
            "folder for the cache"
        ) from None
    except DataError:
        if not summaries:
            shutil.rmtree(working, ignore_errors=True)
        raise
    os.replace(working, directory)
    sync(directory.parent)
    remove_working_files(directory, columns)


def raise_first_error(summaries: Sequence[ShardSummary]) -> None:
    """Raises the error of the first shard that was skipped, if there is one.

    Raises:
        ShardError: a shard was skipped.
    """
    error = next((error for summary in summaries if (error := summary.shard_error()) is not None), None)
    if error is not None:
        raise error


def working_directory(directory: Path) -> Path:
    """Returns the folder in which a cache is built."""
    return directory.with_name(directory.name + BUILDING)


def refuse_too_many(summaries: Sequence[ShardSummary], max_bad_records: int) -> None:
    """Refuses more bad records than may be left out.

    Raises:
        ShardError: there are more; it names the first one that is too many.
    """
    bad = [(summary.path, *error) for summary in summaries for error in summary.bad_records]
    if len(bad) > max_bad_records:
        path, reason, offset, key = bad[max_bad_records]
        raise too_many(ShardError(path, reason, offset, key), max_bad_records)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    paths: tuple[str, ...]
    reading: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ahead:
    """Features ahead of the rest of their shard."""

    features: NDArray[Any]
    moments: Moments | ByteMoments


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """A decoded shard; of a large one the last features, which follow those that came before."""

    path: str
    content_hash: str
    part: Part
    totals: Totals  # of the part
    bad_records: tuple[ShardError, ...]


_Piece = _Ahead | _Whole | ShardError  # the last two end a shard


def _decoded(recipe: Recipe, num_done: int, max_bad_records: int, workers: int | None) -> Generator[_Piece]:
    """Yields the shards that are not done yet, in order; errors are yielded, not raised."""
    shards = recipe.shards[num_done:]
    reading = Reading(
        schema=recipe.schema,
        require_labels=recipe.require_labels,
        dtype=recipe.dtype,
        max_bad_records=max_bad_records if recipe.on_bad_record == "skip" else 0,
    )
    jobs = [_Job(paths=paths, reading=reading) for paths in group(shards, recipe.schema)]
    small = workers is None and sum(shard.size for shard in shards) < _IN_PROCESS_BYTES
    num_workers = min(len(jobs), workers or default_workers())
    if small or num_workers <= 1:
        yield from chain.from_iterable(map(_decode, jobs))
        return
    ahead = min(max(machine.memory() // _MEMORY_SHARE // num_workers // BLOCK_BYTES, 2), _MAX_AHEAD)
    # Rows come back through pipes at 2 GB/s, which was measured to be faster than files.
    with closing(map_in_order(_decode, jobs, num_workers, ahead=ahead)) as outcomes:
        for job, pieces in zip(jobs, outcomes, strict=True):
            try:
                yield from pieces
            except ChildProcessError as error:
                raise ChildProcessError(f"{job.paths[0]}: decoding stopped: {error}") from None


def default_workers() -> int:
    """Returns how many processes decode: $TUNER_DECODE_WORKERS, or as many as CPUs and memory of this machine allow.

    Raises:
        CacheError: the variable is not a whole number above 0.
    """
    text = os.environ.get("TUNER_DECODE_WORKERS")
    if not text:
        return max(1, min(int(machine.cpus()), machine.memory() // _MEMORY_SHARE // _WORKER_BYTES))
    if not (is_whole(text) and int(text)):
        raise CacheError(f"TUNER_DECODE_WORKERS must be a whole number above 0, but is {text!r}")
    return int(text)


def group(shards: Sequence[Shard], schema: Schema) -> list[tuple[str, ...]]:
    """Returns the paths in order, in groups to decode together: small shards of frames up to _TOGETHER_BYTES."""
    max_bytes = _TOGETHER_BYTES if schema.level == "frame" else 0
    groups: list[list[str]] = []
    size = 0
    for shard in shards:
        if not groups or size + shard.size > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(shard.path)
        size += shard.size
    return [tuple(paths) for paths in groups]


def _decode(job: _Job) -> Iterator[_Piece]:
    if len(job.paths) == 1:
        yield from _in_blocks(job.paths[0], job.reading)
        return
    for path, shard in zip(job.paths, decode_together(job.paths, job.reading), strict=True):
        yield shard if isinstance(shard, ShardError) else _whole(path, shard, job.reading)


def _in_blocks(path: str, reading: Reading) -> Iterator[_Piece]:
    """Decodes one shard; the features of each block leave the memory before the next block is read."""
    blocks: list[DecodedShard] = []
    try:
        for block in decode_blocks(path, reading):
            if blocks:
                features = blocks[-1].features_ND
                yield _Ahead(features=features, moments=moments_of(features))
                blocks[-1] = replace(blocks[-1], features_ND=block.features_ND[:0])
            blocks.append(block)
    except ShardError as error:
        yield error
    else:
        yield _whole(path, joined(blocks), reading)


def _whole(path: str, shard: DecodedShard, reading: Reading) -> _Whole:
    part = Part.of(shard, columns_of(reading.schema, reading.dtype))
    totals = part.totals(reading.schema.num_classes)
    return _Whole(path=path, content_hash=shard.content_hash, part=part, totals=totals, bad_records=shard.bad_records)


def _write_manifest(working: Path, recipe: Recipe, summaries: Sequence[ShardSummary]) -> None:
    contents = [(summary.num_videos, summary.content_hash) for summary in summaries if summary.error is None]
    columns = columns_of(recipe.schema, recipe.dtype)
    manifest = {
        "format": FORMAT,
        "features": dict(recipe.schema.features),
        "num_classes": recipe.schema.num_classes,
        "level": recipe.schema.level,
        "max_frames": recipe.schema.max_frames,
        "keys": dict(recipe.schema.keys),
        "dtype": recipe.dtype,
        "fingerprint": fingerprint_of(recipe.schema, contents),
        "num_videos": sum(summary.num_videos for summary in summaries),
        "columns": {column.finished: (working / column.finished).stat().st_size for column in columns},
        "shards": [asdict(summary) for summary in summaries],
    }
    path = working / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(path)
    sync(working)


def _check_disk(recipe: Recipe, folder: Path, *, num_done: int) -> list[str]:
    """Frees space for the shards that are not done, whose size is estimated from the records of the largest shard.

    Returns:
        A sentence for each older cache that was removed.

    Raises:
        CacheError: the rest of the cache will not fit.
    """
    shards = recipe.shards[num_done:]
    counted_videos = counted_bytes = 0
    for shard in sorted(shards, key=lambda shard: -shard.size)[:3]:
        try:
            counted_videos += count_records(shard.path)
            counted_bytes += shard.size
            break
        except ShardError:  # decoding will report it, in order and by the rule for bad shards
            continue
    size = sum(shard.size for shard in shards)
    if recipe.schema.level == "video":
        # Of a video: its features, and 64 bytes for offsets, id and labels.
        video_bytes = recipe.schema.width * np.dtype(recipe.dtype).itemsize + 64
        size = int(counted_videos / max(counted_bytes, 1) * size * video_bytes)
    # Frames take as much space here as in the shards, unless those are compressed. 5 % more, in case other shards have
    # smaller records than the largest.
    need = int(1.05 * size) + (1 << 20)
    directory = folder.parent
    removed = evict(directory, need, folder) if need > available_bytes(directory) else []
    if need > (free := available_bytes(directory)):
        raise CacheError(
            f"{directory}: the cache of {len(recipe.shards)} shards needs about {need / GIGABYTE:.2f} GB more, but "
            f"{free / GIGABYTE:.2f} GB are free; free space there or give another folder for the cache "
            "($TUNER_CACHE, or data.cache in the yaml)"
        )
    return removed
