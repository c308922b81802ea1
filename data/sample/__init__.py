"""Sample shards: in the real format, learnable, and the same bytes for the same seed."""

from data.sample.writer import MARKER, NUM_FRAMES, NUM_VIDEOS, SHARDS, VIDEOS, write_shards, write_splits

__all__ = ["MARKER", "NUM_FRAMES", "NUM_VIDEOS", "SHARDS", "VIDEOS", "write_shards", "write_splits"]
