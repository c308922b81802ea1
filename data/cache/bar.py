"""Progress bars that count shards; a file of its own, since only who draws one needs rich."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.cache.progress import BuildProgress


def shard_bar(console: Console) -> Progress:
    """A bar that counts shards and estimates the time left; it is shown only if the console is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards")
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def build_bar(console: Console) -> Iterator[Callable[[BuildProgress], None]]:
    """Draws a bar of the decoded shards while the block runs, if the console is a terminal.

    Yields:
        The function to call with every `BuildProgress`: the `progress` argument of `open_cache`.
    """
    with shard_bar(console) as bar:
        task = bar.add_task("looking for a cache", total=None)

        def show(progress: BuildProgress) -> None:
            activity = "another process decodes the shards" if progress.waiting_for_lock else "decoding shards"
            bar.update(
                task,
                description=f"{activity}: {progress.num_videos:,} videos",
                completed=progress.shards_done,
                total=progress.shards_total,
            )

        yield show
