"""How far a command is with its shards: a bar on a terminal, and a last line with the speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from data.cache.bar import RareLines, shard_bar


class WrittenShards:
    """Counts the shards that were read, and the rows that were written to `output`."""

    def __init__(self, output: Path, num_shards: int) -> None:
        """Start the clock."""
        self._output, self._start, self._num_rows = output, time.monotonic(), 0
        self._done, self._num_shards = 0, num_shards
        console = Console(stderr=True)
        self._bar, self._lines = shard_bar(console), RareLines(console)
        self._task = self._bar.add_task("writing", total=num_shards)

    def __enter__(self) -> WrittenShards:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def counted(self, shards: Sequence[str]) -> Iterator[str]:
        """Yield the shards; count each when the one after it is asked for, or the end."""
        for shard in shards:
            yield shard
            self._done += 1
            self._bar.update(self._task, completed=self._done)

    def add(self, num_rows: int) -> None:
        """Count so many rows, of a part of a shard."""
        self._num_rows += num_rows
        self._bar.update(self._task, description=f"{self._num_rows:,} videos")
        self._lines.show(f"{self._output}: {self._done:,} of {self._num_shards:,} shards, {self._num_rows:,} videos")

    def print_speed(self, rows: str = "videos") -> None:
        """Print the number of rows and the speed; `rows` is their name."""
        seconds = time.monotonic() - self._start
        rate = self._num_rows / max(seconds, 1e-9)
        print(f"{self._output}: {self._num_rows:,} {rows} in {seconds:.1f} s ({rate:,.0f} {rows}/s)")
