"""Where the driver of a search prints: a terminal with a live view, or plain lines in a file or a pipe."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import finalize

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live

from data.cache.bar import build_bar
from data.cache.progress import BuildProgress
from tuner.console.activity import Activity
from tuner.console.text import describe_end, describe_epoch
from tuner.console.view import SearchView
from tuner.storage.journal import SearchHistory, TrialHistory

# Updates of the live view per second; more would cost a training on two cores noticeable time.
REFRESHES_PER_SECOND = 2


class Console:
    """Prints a search. All output of the driver goes through it, so that no line damages the live view."""

    def __init__(self) -> None:
        """Write to the stdout of this moment, even if it is redirected later (tuner/console/quiet.py)."""
        try:
            descriptor = sys.stdout.fileno()
        except (OSError, AttributeError):  # a notebook has replaced stdout by an object without a file
            descriptor = 1
        self._out = os.fdopen(os.dup(descriptor), "w", buffering=1)
        finalize(self, self._out.close)
        self._rich = RichConsole(file=self._out, highlight=False, soft_wrap=True)
        self._view: SearchView | None = None
        self._activity = Activity(self.print)

    @property
    def is_terminal(self) -> bool:
        """Whether stdout is a terminal, which shows a live view."""
        return self._rich.is_terminal

    def print(self, line: RenderableType = "") -> None:
        """Print a line or a table, above the live view."""
        self._rich.print(line, markup=False)

    def doing(self, what: str, *, aloud: bool = True) -> None:
        """Say what the driver does now, and again where it takes long (`Activity.begin`)."""
        self._activity.begin(what, aloud=aloud)

    def reminding(self) -> AbstractContextManager[None]:
        """While the block runs, say again what the driver does where it takes long."""
        return self._activity.reminding()

    @contextmanager
    def decoding(self) -> Iterator[Callable[[BuildProgress], None]]:
        """Show how far shards are decoded during the block: a bar in a terminal, and one line when all are done.

        Yields:
            The function to call with every `BuildProgress`.
        """
        removed: set[str] = set()

        with build_bar(self._rich, lines=False) as draw:  # `reminding` says it where there is no terminal

            def show(progress: BuildProgress) -> None:
                for line in progress.removed:
                    if line not in removed:
                        removed.add(line)
                        self.print(line)
                draw(progress)
                if self.is_terminal:
                    self._activity.begin("")  # the bar shows it
                elif progress.waiting_for_lock:
                    self._activity.update("waiting for another process that decodes the same shards")
                else:
                    done = f"{progress.shards_done} of {progress.shards_total}"
                    self._activity.update(f"decoding shards: {done}, {progress.num_videos:,} videos")
                if progress.shards_done == progress.shards_total:
                    skipped = f", {progress.num_skipped} bad shards skipped" if progress.num_skipped else ""
                    self.print(f"decoded {progress.shards_total} shards: {progress.num_videos:,} videos{skipped}")

            yield show

    @contextmanager
    def searching(self, search: SearchHistory, results: str = "") -> Iterator[None]:
        """Show the live view of a search during the block, in a terminal.

        Args:
            search: the search.
            results: how to see the results in a browser.
        """
        self._view = SearchView(search, results)
        live = Live(
            self._view,
            console=self._rich,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,  # what libraries print goes where `quiet` sends it, and not above the view
            redirect_stderr=False,
        )
        with live if self.is_terminal else nullcontext():
            yield
        self._view = None

    def trial_started(self, trial: TrialHistory, settings: str) -> None:
        """Print that a trial has started; `settings` is their line (`describe_settings`)."""
        assert self._view is not None
        self._view.began(trial)
        if not self.is_terminal:
            self.print(f"trial {trial.number:03d}  started  {settings}")

    def trial_resumed(self, trial: TrialHistory, epoch: int) -> None:
        """Print that a trial resumed from the checkpoint of an epoch, after its worker or its search had stopped."""
        if not self.is_terminal:
            self.print(f"trial {trial.number:03d}  resumed after epoch {epoch}")

    def trial_reported(self, trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of an epoch: a line, or in a terminal the trial's line of the live view."""
        assert self._view is not None
        self._view.reported(trial, epoch, epochs, metrics)
        if not self.is_terminal:
            self.print(f"{describe_epoch(trial, epoch, epochs, metrics)}  {self._view.best()}")

    def trial_noted(self, trial: TrialHistory, note: str) -> None:
        """Print a note about a trial, in a terminal too."""
        self.print(f"trial {trial.number:03d}  {note}")

    def trial_ended(self, trial: TrialHistory) -> None:
        """Print the result of a trial, in a terminal too."""
        assert self._view is not None
        self._view.ended(trial)
        if trial.status == "failed":
            self.print(f"trial {trial.number:03d}  failed: {trial.error}")
        elif trial.score is not None:
            end = f"  {describe_end(trial)}" if trial.stopped_by else ""
            self.print(
                f"trial {trial.number:03d}  GAP {trial.score:.4f} in epoch {trial.best_epoch} of {trial.last_epoch}"
                f"{end}  {self._view.best()}"
            )
