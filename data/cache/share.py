"""A split whose features are shared out among ranks: each caches consecutive shards, and knows the labels of all.

    own = open_cache(shards of the rank) -> Known.of(own), sent to all ranks -> with_all(own, known of all, rank)

Every rank then has the same ids, labels, statistics and fingerprint as where each had all features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.cache.journal import ShardSummary
from data.cache.recipe import fingerprint_of
from data.cache.statistics import Totals
from data.cache.store import Cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What every rank knows of the videos of a rank: all but their features."""

    ids: NDArray[np.bytes_]
    label_offsets: NDArray[np.int64]
    label_indices: NDArray[np.int32]
    frame_offsets: NDArray[np.int64] | None
    rated_offsets: NDArray[np.int64] | None
    rated_indices: NDArray[np.int32] | None
    shards: tuple[ShardSummary, ...]
    skipped: tuple[tuple[str, str], ...]
    totals: Totals

    @classmethod
    def of(cls, cache: Cache) -> Self:
        """Takes the columns of a rank's cache."""

        def array(name: str) -> Any:
            return None if (column := getattr(cache, name)) is None else np.asarray(column)

        names = ("ids", "label_offsets", "label_indices", "frame_offsets", "rated_offsets", "rated_indices")
        columns = {name: array(name) for name in names}
        return cls(**columns, shards=cache.shards, skipped=cache.skipped, totals=cache.totals())


def with_all(own: Cache, known: Sequence[Known], rank: int) -> Cache:
    """Returns the cache of all ranks' videos, in the order of the ranks, with the features of one rank.

    Args:
        own: the cache of this rank.
        known: of all ranks.
        rank: this one.
    """
    assert own.num_videos == len(known[rank].ids)

    def values(name: str) -> Any:
        columns = [getattr(one, name) for one in known]
        return None if columns[0] is None else np.concatenate(columns)

    def offsets(name: str) -> Any:
        columns = [getattr(one, name) for one in known]
        if columns[0] is None:
            return None
        return np.cumsum(np.concatenate([[0], *map(np.diff, columns)]), dtype=np.int64)

    shards = tuple(shard for one in known for shard in one.shards)
    parts = np.cumsum([0, *(len(one.ids) for one in known)])
    return replace(
        own,
        num_videos=int(parts[-1]),
        fingerprint=fingerprint_of(own.schema, [(shard.num_videos, shard.content_hash) for shard in shards]),
        **{name: values(name) for name in ("ids", "label_indices", "rated_indices")},
        **{name: offsets(name) for name in ("label_offsets", "frame_offsets", "rated_offsets")},
        shards=shards,
        skipped=tuple(skipped for one in known for skipped in one.skipped),
        parts=parts,
        totals_of_all=reduce(Totals.merge, [one.totals for one in known]),
    )
