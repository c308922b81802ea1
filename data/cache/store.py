"""Opened caches: the decoded form of a split, made once per machine, shared by all processes as memory maps.

    find_shards(glob) -> open_cache(shards, schema, directory) -> Cache -> Batches

A cache lies in a folder named by what it is made from: the shards' paths, sizes and modification times, the schema and
the type of the features (data/cache/recipe.py). A changed shard therefore gives another cache, and an unchanged one is
opened in milliseconds. One process builds (data/cache/build.py) while the others wait for it.

Shapes   N examples: videos, or segments   D columns of features   F frames of all examples
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from data import access
from data.cache.build import build, raise_first_error, refuse_too_many
from data.cache.columns import MANIFEST, STATISTICS, Column, Part, columns_of
from data.cache.eviction import hold
from data.cache.journal import ShardSummary
from data.cache.lock import locked
from data.cache.progress import BuildProgress
from data.cache.recipe import FORMAT, Recipe, about_empty
from data.cache.statistics import (
    ByteMoments,
    Moments,
    Statistics,
    Totals,
    from_row,
    keep_totals,
    kept_statistics,
    kept_totals,
)
from data.cache.stream import Stream, offsets_of
from data.errors import CacheError, DataError, NoShardsError, ShardError
from data.schema import MAX_BAD_RECORDS, MAX_FRAMES, Schema
from data.tfrecord.shards import DecodedShard, Reading


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cache:
    """A decoded split. Its arrays are read-only memory maps: all processes of a machine share one page cache.

    A cache pickles as the path of its folder, and its stream.
    """

    directory: Path
    schema: Schema
    fingerprint: str  # hexadecimal; of the schema and the records' content in order: equal for a copy elsewhere
    num_videos: int  # N
    num_bytes: int  # on disk
    ids: NDArray[np.bytes_]  # [N]
    features_ND: NDArray[Any]  # float16 or float32 [N, D]; uint8 [F, D] where there are frames; [0, D]: not kept
    label_offsets: NDArray[np.int64]  # [N + 1]: the labels of row n are label_indices[offsets[n] : offsets[n + 1]]
    label_indices: NDArray[np.int32]  # sorted, without repetition within a video
    frame_offsets: NDArray[np.int64] | None  # the frames of row n are features_ND[offsets[n] : offsets[n + 1]]
    rated_offsets: NDArray[np.int64] | None  # of segments: the rated classes, laid out as the labels are
    rated_indices: NDArray[np.int32] | None
    shards: tuple[ShardSummary, ...]  # in the order of their rows, without the skipped ones
    skipped: tuple[tuple[str, str], ...]  # path and reason of the bad shards that were left out
    moments_S: NDArray[Any] | None = None  # of each shard, where features are not kept (data/cache/columns.py)
    stream: Stream | None = None  # reads the features that are not kept
    # int64 [R + 1], where R ranks share the videos: rank r trains on rows [parts[r], parts[r + 1]). Without a stream
    # `features_ND` has the features of these rows alone.
    parts: NDArray[np.int64] | None = None
    totals_of_all: Totals | None = None  # where the folder holds a part of the rows (data/cache/share.py)

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[Path, Stream | None]]:
        assert self.totals_of_all is None, "the part of one rank does not leave its process"
        return _reopen, (self.directory, self.stream)

    @property
    def bad_records(self) -> list[ShardError]:
        """The bad records that were left out."""
        return [ShardError(shard.path, *error) for shard in self.shards for error in shard.bad_records]

    def remarks(self) -> list[str]:
        """Returns what a user should know of the shards: those and those records that were left out, and empty ones."""
        bad = self.bad_records
        return [
            *(f"left out {path}: {reason}" for path, reason in self.skipped),
            *([f"left out {len(bad)} bad records, the first one: {bad[0]}"] if bad else []),
            *about_empty([shard.path for shard in self.shards if not shard.num_videos], len(self.shards)),
        ]

    def statistics(self, progress: Callable[[BuildProgress], None] | None = None) -> Statistics:
        """Returns mean, variance and label counts over all videos, as `totals` stores them."""
        if self.totals_of_all is not None:
            return self.totals_of_all.statistics()
        kept = kept_statistics(self.directory / STATISTICS, rated=self.rated_indices is not None)
        return kept or self.totals(progress).statistics()

    def totals(self, progress: Callable[[BuildProgress], None] | None = None) -> Totals:
        """Returns the mergeable form of `statistics`.

        A build stores it. Of a cache of an earlier version it is computed once for all processes of the node, while
        `progress` is called after every shard.
        """
        if self.totals_of_all is not None:
            return self.totals_of_all
        path, rated = self.directory / STATISTICS, self.rated_indices is not None
        report = progress or (lambda _: None)
        if (kept := kept_totals(path, rated)) is not None:
            return kept
        with ExitStack() as stack:
            with suppress(OSError):  # a folder that this user may only read
                stack.enter_context(locked(self.directory, len(self.shards), report))
            if (kept := kept_totals(path, rated)) is not None:  # another process was faster
                return kept
            totals = self._summed_up(report)
            with suppress(OSError):  # a full or read-only disk: the next process computes them again
                keep_totals(path, totals)
        return totals

    def _summed_up(self, report: Callable[[BuildProgress], None]) -> Totals:
        access.read_in_order(self.features_ND)
        so_far = replace(BuildProgress.of((), len(self.shards)), summing=True)
        totals = Totals.empty(self.schema, rated=self.rated_indices is not None)
        for shard, part in zip(self.shards, self._parts_of_shards(), strict=True):
            totals = totals.merge(part.totals(self.schema.num_classes))
            so_far = so_far.after(shard)
            report(so_far)
        return totals

    def damaged(self) -> list[str]:
        """Reads all columns; returns the shards whose rows are not what was decoded, none on a healthy disk."""
        access.read_in_order(self.features_ND)
        parts = zip(self.shards, self._parts_of_shards(), strict=True)
        return [shard.path for shard, part in parts if part.checksum() != shard.checksum]

    def in_parts(self, number: int) -> Self:
        """Returns a cache whose videos so many ranks share: each has consecutive shards, of which there must be enough.

        Where shards were left out and too few are left, ranks have no video.
        """
        ends = [len(part) for part in np.array_split(np.arange(len(self.shards)), number)]
        return replace(self, parts=offsets_of(self.shards)[np.cumsum([0, *ends])])

    def remove_manifest(self) -> None:
        """Makes the next `open_cache` build the cache again."""
        (self.directory / MANIFEST).unlink()

    def _parts_of_shards(self) -> Iterator[Part]:
        columns = columns_of(self.schema, str(self.features_ND.dtype), self.moments_S is None)
        row = 0
        for position, shard in enumerate(self.shards):
            moments = None if self.moments_S is None else from_row(self.moments_S[position])
            yield self._part(row, shard, columns, moments)
            row += shard.num_videos

    def _part(
        self, row: int, shard: ShardSummary, columns: Sequence[Column], moments: Moments | ByteMoments | None
    ) -> Part:
        """Returns the rows of a shard, of which `row` is the first, as they were appended."""

        def rows(offsets: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
            return None if offsets is None else offsets[row : row + shard.num_videos + 1]

        def within(values: Any, offsets: NDArray[np.int64] | None) -> Any:
            return None if offsets is None else values[offsets[0] : offsets[-1]]

        videos = slice(row, row + shard.num_videos)
        label_offsets, frame_offsets, rated_offsets = map(
            rows, (self.label_offsets, self.frame_offsets, self.rated_offsets)
        )
        assert label_offsets is not None
        return Part.of(
            DecodedShard(
                ids=self.ids[videos].astype(f"S{shard.id_width}"),
                features_ND=self.features_ND[videos]
                if frame_offsets is None or moments is not None
                else within(self.features_ND, frame_offsets),
                frame_offsets=frame_offsets,
                label_offsets=label_offsets,
                label_indices=within(self.label_indices, label_offsets),
                rated_offsets=rated_offsets,
                rated_indices=within(self.rated_indices, rated_offsets),
                crc_N=np.empty(0, np.uint32),
            ),
            columns,
            moments,
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Opens a finished cache.

        Raises:
            FileNotFoundError: the folder holds no cache.
            CacheError: a file is missing or has another size than when the cache was finished.
        """
        held = hold(directory)
        try:
            cache = cls._of(directory, json.loads(held.read()))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            held.close()
            raise CacheError(f"{directory}: the cache is damaged ({error})") from error
        except CacheError:
            held.close()
            raise
        weakref.finalize(cache.features_ND, held.close)
        return cache

    @classmethod
    def _of(cls, directory: Path, manifest: dict[str, Any]) -> Self:
        if manifest["format"] != FORMAT:
            raise CacheError(f"{directory}: the cache was written by another version of this program")
        for name, size in manifest["columns"].items():
            if (directory / name).stat().st_size != size:
                raise CacheError(f"{directory / name}: the file is not as long as when it was written")
        summaries = [ShardSummary.from_json(entry) for entry in manifest["shards"]]
        schema = Schema(
            features=manifest["features"],
            num_classes=manifest["num_classes"],
            level=manifest.get("level", "video"),  # caches of earlier versions are of videos
            max_frames=manifest.get("max_frames", MAX_FRAMES),
            keys=manifest.get("keys", {}),
        )
        columns = columns_of(schema, manifest["dtype"], "features.npy" in manifest["columns"])
        arrays = {column.finished.removesuffix(".npy"): _map(directory / column.finished) for column in columns}
        dtype = manifest["dtype"] if schema.level == "video" else np.uint8
        return cls(
            directory=directory,
            schema=schema,
            fingerprint=manifest["fingerprint"],
            num_videos=manifest["num_videos"],
            num_bytes=sum(manifest["columns"].values()),
            ids=arrays["ids"],
            features_ND=arrays["features"] if "features" in arrays else np.empty((0, schema.width), dtype),
            label_offsets=arrays["label_offsets"],
            label_indices=arrays["label_indices"],
            frame_offsets=arrays.get("frame_offsets"),
            rated_offsets=arrays.get("rated_offsets"),
            rated_indices=arrays.get("rated_indices"),
            shards=tuple(summary for summary in summaries if summary.error is None),
            skipped=tuple((summary.path, summary.error[0]) for summary in summaries if summary.error is not None),
            moments_S=arrays.get("moments"),
        )


def default_directory() -> Path:
    """Returns the folder of all caches if no other is given: $TUNER_CACHE, or ~/.cache/tuner."""
    return Path(os.environ.get("TUNER_CACHE") or Path.home() / ".cache" / "tuner")


def open_cache(
    shards: Sequence[str],
    schema: Schema,
    directory: Path,
    *,
    on_bad_shard: Literal["fail", "skip"] = "fail",
    on_bad_record: Literal["error", "skip"] = "error",
    max_bad_records: int = MAX_BAD_RECORDS,
    workers: int | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    require_labels: bool = True,
    dtype: Literal["float16", "float32"] = "float16",
    buffer: int | None = None,
) -> Cache:
    """Opens the cache of these shards. If there is none, builds it, or waits for the process that builds it.

    Args:
        shards: paths or URLs, as `find_shards` gives them; rows come in their sorted order.
        schema: the features and classes to read.
        directory: the folder of all caches; created if it is missing.
        on_bad_shard: "fail" raises; "skip" leaves out the whole shard and lists it in `Cache.skipped`.
        on_bad_record: "error": a bad record makes its shard bad; "skip" leaves out the record where the framing of its
            shard is sound, and lists it in `Cache.bad_records`.
        max_bad_records: that may be left out of all shards; more are an error.
        workers: processes that decode; None: $TUNER_DECODE_WORKERS, else as many as the CPUs and the memory of the
            machine allow, or this process alone if the shards are small.
        progress: called after every shard, and while another process builds; never for an existing cache.
        require_labels: False: a video without the key `labels` has no labels.
        dtype: type of the stored features. The error of float16 is at most 0.0005 for |x| <= 2.
        buffer: None: the cache keeps the features. Else it keeps everything but them, and its `stream` reads them again
            in every epoch, at least so many videos at once.

    Raises:
        ShardError: a shard is missing, or bad and not to be skipped, or too many records are bad.
        UnreachableError: a shard cannot be read; such a shard is never skipped.
        CacheError: the disk is too small, or a shard changes while it is read.
        NoShardsError: `shards` is empty.
    """
    if on_bad_shard not in ("fail", "skip"):
        raise ValueError(f"on_bad_shard must be 'fail' or 'skip', but got {on_bad_shard!r}")
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f"on_bad_record must be 'error' or 'skip', but got {on_bad_record!r}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16' or 'float32', but got {dtype!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, but got {workers}")
    if not shards:
        raise NoShardsError("no shards: nothing to open")
    recipe = Recipe.of(
        shards,
        schema,
        dtype=dtype,
        require_labels=require_labels,
        on_bad_record=on_bad_record,
        features=buffer is None,
    )
    report = progress or (lambda _: None)
    folder = directory / recipe.key
    cache = _load_if_whole(folder)
    if cache is None:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(folder, len(recipe.shards), report):
            cache = _load_if_whole(folder)  # another process may have built it while we waited
            if cache is None:
                shutil.rmtree(folder, ignore_errors=True)
                build(
                    recipe,
                    folder,
                    on_bad_shard=on_bad_shard,
                    max_bad_records=max_bad_records if on_bad_record == "skip" else 0,
                    workers=workers,
                    progress=report,
                )
                cache = Cache.load(folder)
    if cache.skipped and on_bad_shard == "fail":
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        raise_first_error([ShardSummary.from_json(entry) for entry in manifest["shards"]])
    refuse_too_many(cache.shards, max_bad_records)
    if buffer is None:
        return cache
    reading = Reading(
        schema=schema,
        require_labels=require_labels,
        dtype=dtype,
        max_bad_records=max_bad_records if on_bad_record == "skip" else 0,
    )
    num_bytes = sum(shard.size for shard in recipe.shards)
    stream = Stream.of(cache.shards, cache.frame_offsets, reading, buffer=buffer, num_bytes=num_bytes, workers=workers)
    return replace(cache, stream=stream)


def built_cache(shards: Sequence[str], schema: Schema, directory: Path, **options: Any) -> Cache | None:
    """Returns what `open_cache` would open without decoding anything; None where there is no such cache yet.

    Args:
        shards: as for `open_cache`, and so are the next two.
        schema: of the records.
        directory: the folder of all caches.
        options: the other fields of a `Recipe`.
    """
    return _load_if_whole(directory / Recipe.of(shards, schema, **options).key)


def find_cache(directory: Path, fingerprint: str, dtype: str, features: bool = True) -> Cache | None:
    """Finds a cache by its content, even if its shards are gone.

    Args:
        directory: the folder of all caches.
        fingerprint: of the cache, or the first digits of it.
        dtype: of its features.
        features: whether it keeps them.
    """
    for path in sorted(directory.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, KeyError, TypeError, DataError):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            kept = manifest["dtype"], "features.npy" in manifest["columns"]
            if manifest["fingerprint"].startswith(fingerprint) and kept == (dtype, features):
                return Cache.load(path.parent)
    return None


def _reopen(directory: Path, stream: Stream | None) -> Cache:
    return replace(Cache.load(directory), stream=stream)


def _load_if_whole(folder: Path) -> Cache | None:
    """Returns the cache; None where it is missing or damaged and must be built."""
    try:
        return Cache.load(folder)
    except (FileNotFoundError, NotADirectoryError, CacheError):
        return None


def _map(path: Path) -> NDArray[Any]:
    """Maps the array of a .npy file read-only; an empty array cannot be mapped and is read."""
    array: NDArray[Any]
    try:
        array = np.load(path, mmap_mode="r")
    except ValueError:
        array = np.load(path)
        if array.size:
            raise
    return array
