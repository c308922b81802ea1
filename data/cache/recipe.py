"""What a cache is made from: the shards as they were found, the schema and the type of the stored features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import glob, has_magic
from typing import Any, Literal

from data import remote
from data.errors import NoShardsError, ShardError
from data.schema import Schema

FORMAT = 1  # of a cache's files (data/cache/columns.py); a cache of another format is built again


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as it was found. Its content counts as changed when its size or version changes."""

    path: str  # local path or URL
    size: int  # bytes
    version: str  # of a local file its modification time in ns; of a URL what its store has, such as an etag


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a cache holds, and nothing else."""

    shards: tuple[Shard, ...]
    schema: Schema
    dtype: Literal["float16", "float32"] = "float16"
    require_labels: bool = True

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
    """Returns what keys and fingerprints say of the level: at video level nothing, so that older caches keep theirs."""
    return [] if schema.level == "video" else [schema.level, schema.max_frames]


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """Lists the files that match, sorted, each once.

    Args:
        patterns: one or several paths or globs; local, or with a protocol that fsspec knows
            (s3://bucket/train*.tfrecord).

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


def find_shard(path: str) -> Shard:
    """Finds the size and version of a shard without reading it.

    Raises:
        ShardError: there is no such file, or its size and version cannot be read.
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


def shard_exists(path: str) -> bool:
    """Returns whether `find_shard` finds the shard."""
    try:
        find_shard(path)
    except ShardError:
        return False
    return True


def _find_local(pattern: str) -> list[str]:
    # A pattern that is the name of a file means that file, even where the name has brackets.
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
    """Returns whether the file exists; fsspec's own `isfile` says False for a store that does not answer."""
    try:
        return bool(filesystem.info(path)["type"] == "file")
    except FileNotFoundError:
        return False
