"""The exceptions of this package.

DataError          the root; the message is one sentence: what is wrong, where, what to do
  ShardError       a TFRecord shard is damaged, of another format, or does not fit the schema; names file, byte and key
  UnreachableError the way to a file is broken: it cannot be read or written, whatever its bytes say
  NoShardsError    a pattern matches no file
  CacheError       the cache cannot be built or is damaged
"""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class DataError(Exception):
    """The root of all exceptions of this package."""


class ShardError(DataError):
    """A shard that cannot be decoded.

    Attributes:
        path: the shard, as the caller gave it.
        reason: what is wrong, without path, offset and key.
        offset: byte at which the bad record starts, in the decompressed bytes; None: no single record is bad.
        key: the bad feature; None: no single feature is bad.
    """

    def __init__(self, path: str, reason: str, offset: int | None = None, key: str | None = None) -> None:
        place = [f"record at byte {offset}"] if offset is not None else []
        place += [f"key {key!r}"] if key is not None else []
        super().__init__(f"{path}: {', '.join(place)}: {reason}" if place else f"{path}: {reason}")
        self.path, self.reason, self.offset, self.key = path, reason, offset, key

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, str, int | None, str | None]]:
        """Pickles the arguments of the constructor, so that the exception can cross processes."""
        return type(self), (self.path, self.reason, self.offset, self.key)


class UnreachableError(DataError):
    """A file, or an object of a store, that cannot be read or written; nothing is known about its bytes.

    Attributes:
        path: the file or URL.
        reason: what is wrong with the way to it, without the path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type["UnreachableError"], tuple[str, str]]:
        """Pickles the arguments of the constructor, so that the exception can cross processes."""
        return type(self), (self.path, self.reason)


class NoShardsError(DataError):
    """A pattern, or a list of patterns, that matches no file."""


class CacheError(DataError):
    """The cache cannot be built (for example on a full disk), or its files are not what its manifest says."""
