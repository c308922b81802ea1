"""How far the build of a cache is, as the builder and those who wait for it see it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Self

from data.cache.journal import ShardSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """How far a build is; processes that wait for another process's build see it too."""

    shards_done: int  # including skipped shards
    shards_total: int
    num_videos: int  # in the shards done
    num_skipped: int
    waiting_for_lock: bool = False  # another process builds the cache, or sums it up
    summing: bool = False  # the shards are decoded, and their statistics are computed
    removed: tuple[str, ...] = ()  # older caches that were removed to free space for this one, a sentence each

    @classmethod
    def of(cls, summaries: Sequence[ShardSummary], shards_total: int, waiting_for_lock: bool = False) -> Self:
        """Sums up the shards that a journal lists."""
        started = cls(
            shards_done=0, shards_total=shards_total, num_videos=0, num_skipped=0, waiting_for_lock=waiting_for_lock
        )
        return reduce(cls.after, summaries, started)

    def after(self, summary: ShardSummary) -> Self:
        """Returns the progress when one more shard is done."""
        return replace(
            self,
            shards_done=self.shards_done + 1,
            num_videos=self.num_videos + summary.num_videos,
            num_skipped=self.num_skipped + (summary.error is not None),
        )
