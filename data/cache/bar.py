"""Progress bars that count shards; a file of its own, since only who draws one needs rich."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.cache.progress import BuildProgress

# Until the first line where there is no terminal.
FIRST_SECONDS = 10.0


def shard_bar(console: Console) -> Progress:
    """A bar that counts shards and estimates the time left; it is shown only if the console is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards")
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


class RareLines:
    """Prints how far a command is where there is no terminal for a bar: after ten seconds, then ever more rarely."""

    def __init__(self, console: Console) -> None:
        """Print to `console`, unless it is a terminal."""
        self._console, self._start, self._next = console, time.monotonic(), FIRST_SECONDS

    def show(self, line: str) -> None:
        """Print the line, if it is time for one."""
        seconds = time.monotonic() - self._start
        if not self._console.is_terminal and seconds >= self._next:
            self._next = 2 * seconds
            self._console.print(f"{line} ({seconds:.0f} s)", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def build_bar(console: Console, *, lines: bool = True) -> Iterator[Callable[[BuildProgress], None]]:
    """Draws a bar of the decoded shards while the block runs, if the console is a terminal; else it prints rare lines.

    Args:
        console: where it is drawn.
        lines: whether to print where there is no terminal.

    Yields:
        The function to call with every `BuildProgress`: the `progress` argument of `open_cache`.
    """
    rare = RareLines(console)
    with shard_bar(console) as bar:
        task = bar.add_task("looking for a cache", total=None)

        def show(progress: BuildProgress) -> None:
            activity = "another process decodes the shards" if progress.waiting_for_lock else "decoding shards"
            activity = "computing statistics" if progress.summing else activity
            bar.update(
                task,
                description=f"{activity}: {progress.num_videos:,} videos",
                completed=progress.shards_done,
                total=progress.shards_total,
            )
            if lines and progress.shards_done < progress.shards_total:
                done = f"{progress.shards_done:,} of {progress.shards_total:,} shards"
                rare.show(f"{activity}: {done}, {progress.num_videos:,} videos")

        yield show
