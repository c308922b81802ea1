"""What a cache is made from: the shards as they were found, the schema and the type of the stored features."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from glob import escape, glob, has_magic
from typing import Any, Literal

from data import remote
from data.errors import NoShardsError, ShardError, UnreachableError
from data.retry import FIRST_PATIENCE_SECONDS, retried, text_of
from data.schema import Schema

_LISTED = 8  # shards of a folder from which on the folder is listed: a listing names a thousand objects a request
_AT_ONCE = 16  # requests
_SHOWN = 3  # empty shards whose names are told
FORMAT = 1  # of a cache's files (data/cache/columns.py); a cache of another format is built again


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as it was found. Its content counts as changed when its size or version changes."""

    path: str  # local path or URL
    size: int  # bytes
    version: str  # of a local file its modification time in ns; of a URL its etag, or the time where there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a cache holds, and nothing else."""

    shards: tuple[Shard, ...]
    schema: Schema
    dtype: Literal["float16", "float32"] = "float16"
    require_labels: bool = True
    on_bad_record: Literal["error", "skip"] = "error"
    features: bool = True  # False: everything but the features is kept

    @classmethod
    def of(cls, shards: Sequence[str], schema: Schema, **options: Any) -> Recipe:
        """Finds the shards, whose rows come in the sorted order of their paths; `options` are the other fields.

        Raises:
            ShardError: there is no such shard.
            UnreachableError: its size and version cannot be read.
        """
        return cls(shards=tuple(find_each(sorted(set(shards)))), schema=schema, **options)

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
            *([] if self.on_bad_record == "error" else [self.on_bad_record]),  # older caches keep their names
            *([] if self.features else ["without features"]),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def fingerprint_of(schema: Schema, contents: Sequence[tuple[int, str]]) -> str:
    """Names what a cache holds, wherever its shards lie.

    Args:
        schema: of the records.
        contents: number of examples and content hash of each shard, in the order of the rows.

    Returns:
        64 hexadecimal digits.
    """
    parts = [list(schema.features.items()), schema.num_classes, *_level(schema), *map(list, contents)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _level(schema: Schema) -> list[Any]:
    """Returns what names and fingerprints say of the level and the records' keys.

    At video level, and of the usual keys, that is nothing, so that older caches keep their names.
    """
    level = [] if schema.level == "video" else [schema.level, schema.max_frames]
    return [*level, *([dict(schema.keys)] if schema.keys else [])]


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """Lists the files that match, sorted, each once.

    Args:
        patterns: one or several paths or globs; local, or with a protocol that fsspec knows
            (s3://bucket/train*.tfrecord). The name of a file or folder that exists means it, even where the name looks
            like a pattern, as `data [2018]/train*.tfrecord`.

    Raises:
        NoShardsError: a pattern matches no file, or the store cannot be listed.
        UnreachableError: the store does not answer.
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


def is_folder(path: str) -> bool:
    """Returns whether there is a folder of this name; False for a store without an answer."""
    if "://" not in path:
        return os.path.isdir(os.path.expanduser(path))
    try:
        filesystem, inner = remote.filesystem(path)
        return bool(filesystem.isdir(inner))
    except remote.errors(OSError, ValueError, ImportError):
        return False


def find_shard(path: str) -> Shard:
    """Finds the size and version of a shard without reading it.

    Raises:
        ShardError: there is no such file.
        UnreachableError: its size and version cannot be read.
    """
    return find_each([path])[0]


def find_each(paths: Sequence[str]) -> list[Shard]:
    """Finds the sizes and versions of shards, as `find_shard` does; of a store, with one listing for each folder."""
    listed: dict[str, Any] = {}
    for folder, number in Counter(path.rpartition("/")[0] for path in paths if "://" in path).items():
        if number >= _LISTED:
            listed |= _listing(folder)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda path: _shard(path, listed.get(path)), paths))


def _shard(path: str, listed: Any) -> Shard:
    """Returns a shard as a listing shows it, or as its store or disk does where the listing has none."""
    try:
        if "://" not in path:
            status = retried(lambda: os.stat(path), path)
            return Shard(path=path, size=status.st_size, version=str(status.st_mtime_ns))
        found = listed or retried(lambda: _info(path), path)
    except FileNotFoundError:
        raise ShardError(path, "no such file") from None
    except remote.errors(OSError) as error:
        raise UnreachableError(path, f"cannot be read: {text_of(error)}") from error
    times = (found[key] for key in ("LastModified", "mtime", "created") if found.get(key))
    return Shard(path=path, size=int(found["size"] or 0), version=str(_etag(found) or next(times, "")))


def _etag(found: Any) -> Any:
    return found.get("ETag") or found.get("etag")


def _info(url: str) -> Any:
    filesystem, inner = remote.filesystem(url)
    return filesystem.info(inner)


def _listing(folder: str) -> dict[str, Any]:
    """Returns what the store knows of the files in a folder, by URL; nothing where it may not be listed, or no etag."""

    def listed() -> dict[str, Any]:
        filesystem, inner = remote.filesystem(folder)
        scheme = folder.partition("://")[0]
        entries = filesystem.ls(inner, detail=True)
        # What else an entry has, such as a time, may be written in another way where one file is asked for.
        return {f"{scheme}://{entry['name'].lstrip('/')}": entry for entry in entries if _etag(entry)}

    try:
        return retried(listed, folder)
    except remote.errors(OSError):  # each file is asked for, which says what is wrong
        return {}


def about_empty(paths: Sequence[str], num_shards: int) -> list[str]:
    """Returns a sentence about shards that hold nothing, as a broken download leaves them; none where there are none.

    Args:
        paths: of the empty shards.
        num_shards: of all.
    """
    if not paths:
        return []
    shown = ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
    return [f"{len(paths)} of {num_shards} shards are empty: {shown}"]


def shard_exists(path: str) -> bool:
    """Returns whether there is such a file; True where its store or disk cannot be asked now."""
    try:
        _info(path) if "://" in path else os.stat(path)
    except FileNotFoundError:
        return False
    except remote.errors(OSError):
        return True
    return True


def _find_local(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return [os.path.abspath(pattern)]
    paths = glob(_with_literal_folders(pattern, os.path.isdir), recursive=True)
    return [os.path.abspath(path) for path in paths if os.path.isfile(path)]


def _with_literal_folders(pattern: str, is_folder: Callable[[str], bool]) -> str:
    """Escapes the first folders of a pattern, as many as exist under the very name that the pattern has for them."""
    *folders, name = pattern.split("/")
    exist = 0
    while exist < len(folders) and (not has_magic(folders[exist]) or is_folder("/".join(folders[: exist + 1]))):
        exist += 1
    return "/".join([*map(escape, folders[:exist]), *folders[exist:], name])


def _find_remote(pattern: str) -> list[str]:
    def listed() -> list[str]:
        filesystem, inner = remote.filesystem(pattern)
        paths: list[str] = []
        # One request less for a usual pattern: hardly a name has a star.
        if has_magic(inner.replace("*", "")) or not has_magic(inner):
            paths = [inner] if _is_file(filesystem, inner) else []
        if has_magic(inner) and not paths:
            paths = filesystem.glob(_with_literal_folders(inner, filesystem.isdir))
        if pattern.split("://")[0] in ("file", "local"):
            return [path for path in paths if os.path.isfile(path)]
        return [filesystem.unstrip_protocol(path) for path in paths]

    try:
        return retried(listed, pattern, patience=FIRST_PATIENCE_SECONDS)
    except remote.errors(OSError, ValueError, ImportError) as error:
        raise NoShardsError(f"{pattern}: cannot be listed: {text_of(error)}") from error


def _is_file(filesystem: Any, path: str) -> bool:
    """Returns whether the file exists; fsspec's own `isfile` says False for a store that does not answer."""
    try:
        return bool(filesystem.info(path)["type"] == "file")
    except FileNotFoundError:
        return False
