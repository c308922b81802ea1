"""What can be wrong with the data.

DataError          root; its text is one sentence: what, where, what to do
  ShardError       a TFRecord shard is damaged, foreign or does not fit the schema: names file, byte offset and key
  NoShardsError    a pattern matches no file
  CacheError       the cache cannot be built or is damaged
"""


class DataError(Exception):
    """Root of everything that this package raises about data."""


class ShardError(DataError):
    """A shard that cannot be decoded.

    Attributes:
        path: the shard, as it was given.
        reason: what is wrong, without the place.
        offset: byte at which the record starts (of the decompressed bytes, if gzip); None: no record is to blame.
        key: the feature to blame, if one is.
    """

    def __init__(self, path: str, reason: str, offset: int | None = None, key: str | None = None) -> None:
        place = [f"record at byte {offset}"] if offset is not None else []
        place += [f"key {key!r}"] if key is not None else []
        super().__init__(f"{path}: {', '.join(place)}: {reason}" if place else f"{path}: {reason}")
        self.path, self.reason, self.offset, self.key = path, reason, offset, key

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, str, int | None, str | None]]:
        """Pickles by its parts, since it crosses processes."""
        return type(self), (self.path, self.reason, self.offset, self.key)


class NoShardsError(DataError):
    """A glob or a list of shards without a single file."""


class CacheError(DataError):
    """The cache cannot be built (a full disk, say) or does not hold what its manifest says."""
