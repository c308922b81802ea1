"""The decoded form of a split, made once per node: columns in memory-mapped files, shared by every trial.

    find_shards(glob) -> open_cache(shards, schema, directory) -> Cache -> Batches

A cache lies in a folder named by what went into it: the shards' paths, sizes and modification times, the schema and the
storage type. A changed shard is therefore another cache, and an unchanged one is opened in milliseconds. One process
builds, the others wait for it (data/cache/build.py says how, and why a killed build goes on where it was).

    python -m data.cache --data 'shards/train*.tfrecord'        builds or checks, and says what the cache holds
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal, Self
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from data import remote
from data.cache import build as _build
from data.cache.build import BuildProgress, Column, Part, Recipe, ShardRecord
from data.cache.eviction import MANIFEST, hold
from data.cache.statistics import Statistics, statistics_of
from data.errors import CacheError, DataError, NoShardsError, ShardError
from data.schema import FEATURES, MAX_FRAMES, NUM_CLASSES, Schema
from data.tfrecord.shards import DecodedShard

__all__ = [
    "BuildProgress",
    "Cache",
    "CacheError",
    "ShardRecord",
    "default_directory",
    "find_cache",
    "find_shards",
    "open_cache",
]

_POLL_SECONDS = 0.1  # between two looks at another process's build


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cache:
    """A split, decoded. Arrays are read-only memory maps: they cost page cache, not memory, and all processes share it.

    Pickles as the name of its folder.
    """

    directory: Path
    schema: Schema
    fingerprint: str  # hex; of the records' content in order and the schema: the same for a copy elsewhere
    num_videos: int  # N
    num_bytes: int  # on disk
    ids: NDArray[np.bytes_]  # [N]
    features_ND: NDArray[Any]  # float16 or float32 [N, D]; uint8 [F, D] where there are frames
    label_offsets: NDArray[np.int64]  # [N + 1]: the labels of row n are label_indices[offsets[n] : offsets[n + 1]]
    label_indices: NDArray[np.int32]  # sorted, without repetition within a video
    frame_offsets: NDArray[np.int64] | None  # the frames of row n are features_ND[offsets[n] : offsets[n + 1]]
    rated_offsets: NDArray[np.int64] | None  # of segments, as the labels: the classes that were rated
    rated_indices: NDArray[np.int32] | None
    shards: tuple[ShardRecord, ...]  # in the order of their rows, without the skipped ones
    skipped: tuple[tuple[str, str], ...]  # path and reason of the bad shards that were left out

    def __reduce__(self) -> tuple[Callable[[Path], Cache], tuple[Path]]:
        return _reopen, (self.directory,)

    def statistics(self) -> Statistics:
        """Mean, variance and label counts over all videos; computed by the first who asks, kept beside the columns."""
        path = self.directory / "statistics.npz"
        if (kept := _kept_statistics(path, rated=self.rated_indices is not None)) is not None:
            return kept
        statistics = statistics_of(self, self.schema.num_classes)
        _keep_statistics(path, statistics)
        return statistics

    def damaged(self) -> list[str]:
        """Reads everything; returns the shards whose rows are not what was decoded: none, on a healthy disk."""
        damaged, row = [], 0
        columns = _build.columns_of(self.schema, str(self.features_ND.dtype))
        for shard in self.shards:
            if self._part(row, shard, columns).checksum() != shard.checksum:
                damaged.append(shard.path)
            row += shard.num_videos
        return damaged

    def _part(self, row: int, shard: ShardRecord, columns: Sequence[Column]) -> Part:
        """The rows of a shard, of which `row` is the first, as they were appended."""

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
                if frame_offsets is None
                else within(self.features_ND, frame_offsets),
                frame_offsets=frame_offsets,
                label_offsets=label_offsets,
                label_indices=within(self.label_indices, label_offsets),
                rated_offsets=rated_offsets,
                rated_indices=within(self.rated_indices, rated_offsets),
                content_hash=shard.content_hash,
            ),
            columns,
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Opens a finished cache.

        Raises:
            FileNotFoundError: there is none.
            CacheError: a part of it is missing or has another size than when it was finished.
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
        if manifest["format"] != _build.FORMAT:
            raise CacheError(f"{directory}: written by another version of this program")
        for name, size in manifest["columns"].items():
            if (directory / name).stat().st_size != size:
                raise CacheError(f"{directory / name}: the file is not as long as when it was written")
        records = [ShardRecord.from_json(entry) for entry in manifest["shards"]]
        schema = Schema(
            features=manifest["features"],
            num_classes=manifest["num_classes"],
            level=manifest.get("level", "video"),  # caches of earlier versions are of videos
            max_frames=manifest.get("max_frames", MAX_FRAMES),
        )
        names = [column.finished for column in _build.columns_of(schema, manifest["dtype"])]
        arrays = {name.removesuffix(".npy"): _map(directory / name) for name in names}
        return cls(
            directory=directory,
            schema=schema,
            fingerprint=manifest["fingerprint"],
            num_videos=manifest["num_videos"],
            num_bytes=sum(manifest["columns"].values()),
            ids=arrays["ids"],
            features_ND=arrays["features"],
            label_offsets=arrays["label_offsets"],
            label_indices=arrays["label_indices"],
            frame_offsets=arrays.get("frame_offsets"),
            rated_offsets=arrays.get("rated_offsets"),
            rated_indices=arrays.get("rated_indices"),
            shards=tuple(record for record in records if record.error is None),
            skipped=tuple((record.path, record.error[0]) for record in records if record.error is not None),
        )


def default_directory() -> Path:
    """Where caches are kept if nobody says otherwise: $TUNER_CACHE, or ~/.cache/tuner."""
    return Path(os.environ.get("TUNER_CACHE") or Path.home() / ".cache" / "tuner")


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """The files that match, sorted, each once.

    Args:
        patterns: a path or glob or several; local, or with a protocol that fsspec knows (s3://bucket/train*.tfrecord).

    Raises:
        NoShardsError: a pattern matches no file.
    """
    shards: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = _find_remote(pattern) if "://" in pattern else _find_local(pattern)
        if not found:
            reason = "no file matches" if has_magic(pattern) else "no such file"
            if os.path.isdir(pattern):
                reason = f"is a folder; give its files, as in {os.path.join(pattern, '*.tfrecord')}"
            raise NoShardsError(f"{pattern}: {reason}")
        shards.update(found)
    if not shards:
        raise NoShardsError("no shards: the list of patterns is empty")
    return sorted(shards)


def open_cache(
    shards: Sequence[str],
    schema: Schema,
    directory: Path,
    *,
    on_bad_shard: Literal["fail", "skip"] = "fail",
    workers: int | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    require_labels: bool = True,
    dtype: Literal["float16", "float32"] = "float16",
) -> Cache:
    """Opens the cache of these shards; builds it first where there is none, or waits for the process that does.

    Args:
        shards: paths or URLs, as `find_shards` gives them; rows come in their sorted order.
        schema: the features and classes to read.
        directory: the folder of all caches; made where it is missing.
        on_bad_shard: "fail" raises; "skip" leaves a bad shard out, whole, and lists it in `Cache.skipped`.
        workers: processes that decode; None: as many as CPUs, or none for shards that are decoded sooner than started.
        progress: called after every shard, and while another process builds; not for a cache that is there.
        require_labels: False: videos without the key `labels` are read, as without labels.
        dtype: type of the stored features. float16 is off by at most 0.0005 for |x| <= 2.

    Raises:
        ShardError: a shard is missing, or bad and not to be skipped.
        CacheError: the disk is too small, or a shard changes while it is read.
        NoShardsError: `shards` is empty.
    """
    if on_bad_shard not in ("fail", "skip"):
        raise ValueError(f"on_bad_shard must be 'fail' or 'skip', but got {on_bad_shard!r}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16' or 'float32', but got {dtype!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, but got {workers}")
    if not shards:
        raise NoShardsError("no shards: nothing to open")
    recipe = Recipe(
        shards=tuple(_build.find_shard(path) for path in sorted(set(shards))),
        schema=schema,
        dtype=dtype,
        require_labels=require_labels,
    )
    report = progress or (lambda _: None)
    folder = directory / recipe.key
    cache = _load_if_whole(folder)
    if cache is None:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(folder, len(recipe.shards), report):
            cache = _load_if_whole(folder)  # by the process that we waited for
            if cache is None:
                shutil.rmtree(folder, ignore_errors=True)
                _build.build(recipe, folder, on_bad_shard=on_bad_shard, workers=workers, progress=report)
                cache = Cache.load(folder)
    if cache.skipped and on_bad_shard == "fail":
        raise _first_error(folder)
    return cache


class _locked:
    """Holds the lock of one cache; reports the holder's progress while waiting for it."""

    def __init__(self, folder: Path, num_shards: int, report: Callable[[BuildProgress], None]) -> None:
        self._lock = FileLock(folder.with_name(folder.name + ".lock"))
        self._working, self._num_shards, self._report = _build.working_directory(folder), num_shards, report

    def __enter__(self) -> None:
        while True:
            try:
                self._lock.acquire(timeout=0)
                return
            except Timeout:
                records = _build.read_journal(self._working)
                self._report(_build.progress_of(records, self._num_shards, waiting_for_lock=True))
                time.sleep(_POLL_SECONDS)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def find_cache(directory: Path, fingerprint: str, dtype: str) -> Cache | None:
    """A cache of that content and type of features among all of `directory`, whatever has become of its shards.

    `fingerprint` may be its first digits.
    """
    for path in sorted(directory.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, KeyError, TypeError, DataError):
            manifest = json.loads(path.read_text())
            if manifest["fingerprint"].startswith(fingerprint) and manifest["dtype"] == dtype:
                return Cache.load(path.parent)
    return None


def _reopen(directory: Path) -> Cache:
    return Cache.load(directory)


def _load_if_whole(folder: Path) -> Cache | None:
    """The cache, or None where there is none or it is damaged: then it is built again."""
    try:
        return Cache.load(folder)
    except (FileNotFoundError, NotADirectoryError, CacheError):
        return None


def _kept_statistics(path: Path, rated: bool) -> Statistics | None:
    """What `Cache.statistics` kept; None where there is nothing, or nothing of use."""
    try:
        with np.load(path) as kept:
            return Statistics(
                num_videos=int(kept["num_videos"]),
                mean_D=kept["mean_D"],
                variance_D=kept["variance_D"],
                label_counts_C=kept["label_counts_C"],
                rated_counts_C=kept["rated_counts_C"] if rated else None,
            )
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _keep_statistics(path: Path, statistics: Statistics) -> None:
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **{name: value for name, value in asdict(statistics).items() if value is not None})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # two who compute at once write the same
    except OSError:  # a full disk, or a folder that others may only read: whoever asks next computes them again
        with suppress(OSError):
            temporary.unlink()


def _first_error(folder: Path) -> ShardError:
    manifest = json.loads((folder / MANIFEST).read_text())
    errors = (ShardRecord.from_json(entry).shard_error() for entry in manifest["shards"])
    return next(error for error in errors if error is not None)


def _map(path: Path) -> NDArray[Any]:
    """The array in a .npy file, mapped read-only; an empty one cannot be mapped and is read."""
    array: NDArray[Any]
    try:
        array = np.load(path, mmap_mode="r")
    except ValueError:
        array = np.load(path)
        if array.size:
            raise
    return array


def _find_local(pattern: str) -> list[str]:
    # An existing file is itself, whatever brackets are in its name.
    paths = [pattern] if os.path.isfile(pattern) else glob(os.path.expanduser(pattern), recursive=True)
    return [os.path.abspath(path) for path in paths if os.path.isfile(path)]


def _find_remote(pattern: str) -> list[str]:
    try:
        filesystem, inner = remote.filesystem(pattern)
        paths = filesystem.glob(inner) if has_magic(inner) else [inner] if _is_file(filesystem, inner) else []
        if pattern.split("://")[0] in ("file", "local"):
            return [path for path in paths if os.path.isfile(path)]
        return [filesystem.unstrip_protocol(path) for path in paths]
    except remote.errors(OSError, ValueError, ImportError) as error:
        raise NoShardsError(f"{pattern}: cannot be listed: {error}") from error


def _is_file(filesystem: Any, path: str) -> bool:
    """Unlike fsspec's own `isfile`, which takes a store that does not answer for one without the file."""
    try:
        return bool(filesystem.info(path)["type"] == "file")
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m data.cache`: builds or checks the cache of some shards and says what it holds."""
    parser = argparse.ArgumentParser(prog="python -m data.cache", description=main.__doc__)
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="shards: paths, globs or URLs")
    parser.add_argument("--level", choices=tuple(FEATURES), default="video", help="of the records; default: video")
    parser.add_argument(
        "--features",
        nargs="+",
        type=_feature,
        metavar="NAME=WIDTH",
        help="default: mean_rgb=1024 mean_audio=128, at the other levels rgb=1024 audio=128",
    )
    parser.add_argument("--max-frames", type=int, default=MAX_FRAMES, metavar="T", help="default: %(default)s")
    parser.add_argument("--num-classes", type=int, default=NUM_CLASSES, metavar="C", help="default: %(default)s")
    parser.add_argument("--directory", type=Path, help="folder of all caches; default: $TUNER_CACHE or ~/.cache/tuner")
    parser.add_argument("--on-bad-shard", choices=("fail", "skip"), default="fail", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode; default: the CPUs")
    parser.add_argument("--no-labels", action="store_true", help="accept videos without the key 'labels'")
    options = parser.parse_args(arguments)
    try:
        _build_and_tell(options)
    except (DataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _feature(text: str) -> tuple[str, int]:
    name, equals, width = text.partition("=")
    if not (name and equals and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WIDTH, as in mean_rgb=1024")
    return name, int(width)


def _build_and_tell(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    schema = Schema(
        features=dict(options.features or FEATURES[options.level]),
        num_classes=options.num_classes,
        level=options.level,
        max_frames=options.max_frames,
    )
    text = TextColumn("{task.description}")
    began = time.perf_counter()
    built = False
    columns = text, BarColumn(), MofNCompleteColumn(), TextColumn("shards"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking", total=None)

        def show(progress: BuildProgress) -> None:
            nonlocal built
            built = True
            verb = "waiting for another process" if progress.waiting_for_lock else "decoding"
            bar.update(
                task,
                description=f"{verb}: {progress.num_videos:,} videos",
                completed=progress.shards_done,
                total=progress.shards_total,
            )

        open_now = partial(
            open_cache,
            find_shards(options.data),
            schema,
            options.directory or default_directory(),
            on_bad_shard=options.on_bad_shard,
            workers=options.workers,
            progress=show,
            require_labels=not options.no_labels,
            dtype=options.dtype,
        )
        cache = open_now()
        if not built:
            bar.update(task, description="checking what is there")
            if cache.damaged():
                (cache.directory / MANIFEST).unlink()
                cache = open_now()
    seconds = time.perf_counter() - began
    _print_table(cache, f"built in {seconds:.1f} s" if built else f"was there; checked in {seconds:.1f} s")


def _print_table(cache: Cache, origin: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    statistics = cache.statistics()
    without = int((statistics.label_counts_C == 0).sum())
    table = Table(box=box.SIMPLE, show_header=False)
    rows = {
        "segments" if cache.schema.level == "segment" else "videos": f"{cache.num_videos:,}",
        "shards": f"{len(cache.shards):,}",
        "features": ", ".join(f"{name} {width}" for name, width in cache.schema.features.items()),
        "stored as": str(cache.features_ND.dtype),
        **({} if cache.frame_offsets is None else {"frames": f"{len(cache.features_ND):,}"}),
        "labels per video": f"{len(cache.label_indices) / max(cache.num_videos, 1):.2f}",
        "classes": f"{cache.schema.num_classes:,}, of which {without:,} without a positive",
        "size on disk": f"{cache.num_bytes / 1e6:,.1f} MB",
        "fingerprint": cache.fingerprint[:16],
        "folder": str(cache.directory),
        "cache": origin,
        "skipped": f"{len(cache.skipped)} shards",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)
    for path, reason in cache.skipped:
        print(f"skipped {path}: {reason}")
