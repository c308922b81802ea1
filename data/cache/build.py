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

from data.cache.columns import (
    BUILDING,
    MANIFEST,
    Column,
    ColumnFiles,
    Part,
    columns_of,
    remove_working_files,
    sync,
)
from data.cache.decoding import decoded
from data.cache.eviction import GIGABYTE, available_bytes, evict
from data.cache.journal import ShardSummary
from data.cache.progress import BuildProgress
from data.cache.recipe import FORMAT, Recipe, Shard, find_each, fingerprint_of
from data.cache.statistics import ByteMoments, Moments, Totals, merged, moments_of
from data.errors import CacheError, DataError, ShardError
from data.frames import decode_blocks, decode_together
from data.schema import Schema
from data.tfrecord.framing import count_records
from data.tfrecord.shards import DecodedShard, Reading, joined, too_many

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
    columns = columns_of(recipe.schema, recipe.dtype, recipe.features)
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
    columns: tuple[Column, ...]

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def keeps_features(self) -> bool:
        return self.columns[0].name == "features"


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
    columns = columns_of(recipe.schema, recipe.dtype, recipe.features)
    jobs = [_Job(paths=paths, reading=reading, columns=columns) for paths in group(shards, recipe.schema)]
    num_bytes = sum(shard.size for shard in shards)
    with closing(decoded(_decode, jobs, num_bytes=num_bytes, workers=workers)) as pieces:
        yield from chain.from_iterable(pieces)


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
        yield from _in_blocks(job)
        return
    for path, shard in zip(job.paths, decode_together(job.paths, job.reading), strict=True):
        yield shard if isinstance(shard, ShardError) else _whole(path, shard, job)


def _in_blocks(job: _Job) -> Iterator[_Piece]:
    """Decodes one shard; the features of each block leave the memory before the next block is read."""
    blocks: list[DecodedShard] = []
    before: Moments | ByteMoments | None = None  # of the features that are not kept
    try:
        for block in decode_blocks(job.path, job.reading):
            if blocks:
                features = blocks[-1].features_ND
                moments = moments_of(features)
                if job.keeps_features:
                    yield _Ahead(features=features, moments=moments)
                else:
                    before = merged(before, moments)
                blocks[-1] = replace(blocks[-1], features_ND=block.features_ND[:0])
            blocks.append(block)
    except ShardError as error:
        yield error
    else:
        yield _whole(job.path, joined(blocks), job, before)


def _whole(path: str, shard: DecodedShard, job: _Job, before: Moments | ByteMoments | None = None) -> _Whole:
    moments = None if job.keeps_features else merged(before, moments_of(shard.features_ND))
    part = Part.of(shard, job.columns, moments)
    totals = part.totals(job.reading.schema.num_classes)
    return _Whole(path=path, content_hash=shard.content_hash, part=part, totals=totals, bad_records=shard.bad_records)


def _write_manifest(working: Path, recipe: Recipe, summaries: Sequence[ShardSummary]) -> None:
    contents = [(summary.num_videos, summary.content_hash) for summary in summaries if summary.error is None]
    columns = columns_of(recipe.schema, recipe.dtype, recipe.features)
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
    if recipe.schema.level == "video" or not recipe.features:
        # Of a video: its features, and 64 bytes for offsets, id and labels.
        video_bytes = recipe.features * recipe.schema.width * np.dtype(recipe.dtype).itemsize + 64
        size = int(counted_videos / max(counted_bytes, 1) * size * video_bytes)
        size += (not recipe.features) * len(shards) * 16 * recipe.schema.width  # moments of each shard
    # Frames take as much space here as in the shards, unless those are compressed. 5 % more, in case other shards have
    # smaller records than the largest.
    need = int(1.05 * size) + (1 << 20)
    directory = folder.parent
    removed = evict(directory, need, folder) if need > available_bytes(directory) else []
    if need > (free := available_bytes(directory)):
        raise CacheError(
            f"{directory}: the cache of {len(recipe.shards)} shards needs about {need / GIGABYTE:.2f} GB more, but "
            f"{free / GIGABYTE:.2f} GB are free; free space there or give another folder for the cache "
            "($TUNER_CACHE, or data.cache_folder in the yaml), or keep less of it (data.cache: share or none)"
        )
    return removed
