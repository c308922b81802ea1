"""What a person sees of a search: one live view in a terminal, plain lines elsewhere; Ray's own talk goes to a file."""

import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from data.cache.store import BuildProgress
from tuner.errors import disk_full_message
from tuner.storage.journal import SearchHistory, TrialHistory

# Screen updates a second: enough to look alive, too few to cost a training on two cores anything.
REFRESHES_PER_SECOND = 2
# Running trials that the live view lists one by one.
MOST_RUNNING = 12


class Console:
    """Prints a search; everything goes through it, so that the live view is never torn."""

    def __init__(self) -> None:
        """Write to today's stdout, whatever is redirected later."""
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        self._rich = RichConsole(file=self._out, highlight=False, soft_wrap=True)
        self._view: SearchView | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches."""
        return self._rich.is_terminal

    def print(self, line: RenderableType = "") -> None:
        """One line that stays."""
        self._rich.print(line, markup=False)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[BuildProgress], None]]:
        """What the block calls shows how far shards are decoded: a bar in a terminal, a line at the end elsewhere."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=self._rich, transient=True, disable=not self.is_terminal)
        task = bar.add_task("decoding shards")
        removed: set[str] = set()

        def show(progress: BuildProgress) -> None:
            for line in progress.removed:
                if line not in removed:
                    removed.add(line)
                    self.print(line)
            waiting = "another process decodes the shards" if progress.waiting_for_lock else "decoding shards"
            bar.update(task, completed=progress.shards_done, total=progress.shards_total, description=waiting)
            if progress.shards_done == progress.shards_total:
                skipped = f", {progress.num_skipped} bad shards skipped" if progress.num_skipped else ""
                self.print(f"decoded {progress.shards_total} shards: {progress.num_videos:,} videos{skipped}")

        with bar:
            yield show

    @contextmanager
    def searching(self, search: SearchHistory) -> Iterator[None]:
        """Show the search while the block runs."""
        self._view = SearchView(search)
        live = Live(
            self._view,
            console=self._rich,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,  # what others print goes where `quiet` sends it, not above the view
            redirect_stderr=False,
        )
        with live if self.is_terminal else nullcontext():
            yield
        self._view = None

    def trial_started(self, trial: TrialHistory, settings: str) -> None:
        """A trial's actor runs; it may still wait for its slot."""
        if not self.is_terminal:
            self.print(f"trial {trial.number:03d}  starts  {settings}")

    def trial_resumed(self, trial: TrialHistory, epoch: int) -> None:
        """A trial goes on from its checkpoint, after whatever ended its worker."""
        if not self.is_terminal:
            self.print(f"trial {trial.number:03d}  goes on after epoch {epoch}")

    def trial_reported(self, trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""
        assert self._view is not None
        self._view.reported(trial, epoch, epochs, metrics)
        if not self.is_terminal:
            self.print(f"{describe_epoch(trial, epoch, epochs, metrics)}  {self._view.best()}")

    def trial_noted(self, trial: TrialHistory, note: str) -> None:
        """What a person should know of; the line stays in a terminal too."""
        self.print(f"trial {trial.number:03d}  {note}")

    def trial_ended(self, trial: TrialHistory) -> None:
        """A trial is over; the line stays in a terminal too."""
        assert self._view is not None
        self._view.ended(trial)
        if trial.status == "failed":
            self.print(f"trial {trial.number:03d}  failed: {trial.error}")
        elif trial.score is not None:
            why = f"  stopped by {trial.stopped_by}" if trial.stopped_by else ""
            self.print(
                f"trial {trial.number:03d}  GAP {trial.score:.4f} in epoch {trial.best_epoch} of {trial.last_epoch}"
                f"{why}  {self._view.best()}"
            )


class SearchView:
    """The live view: how far the search is, its best so far, and the trials that run."""

    def __init__(self, search: SearchHistory) -> None:
        """Look at `search`, which grows while this is shown."""
        self.search = search
        self.started = time.monotonic()
        self.epochs_now: dict[str, str] = {}
        self.videos_per_second: dict[str, float] = {}
        self.ended_here = 0
        self._best = self._best_of_all()

    def reported(self, trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Remember the last line of a running trial."""
        self.epochs_now[trial.id] = describe_epoch(trial, epoch, epochs, metrics)
        self.videos_per_second[trial.id] = metrics.get("videos_per_second", 0.0)
        if self._best is None or (trial.score or 0.0) > (self._best.score or 0.0):
            self._best = trial

    def ended(self, trial: TrialHistory) -> None:
        """Forget a trial."""
        self.epochs_now.pop(trial.id, None)
        self.videos_per_second.pop(trial.id, None)
        self.ended_here += 1
        if trial is self._best and trial.status == "failed":
            self._best = self._best_of_all()

    def _best_of_all(self) -> TrialHistory | None:
        scored = [trial for trial in self.search.trials.values() if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)

    def best(self) -> str:
        """The best GAP so far, of trials that still run too, and the gain over trial 0."""
        best = self._best
        if best is None:
            return ""
        first = next(iter(self.search.trials.values()))
        gain = f" (+{(best.score or 0) - first.score:.4f} over trial 0)" if first.score is not None else ""
        return f"best {best.number:03d} GAP {best.score:.4f}{gain}"

    def left(self) -> str:
        """The time left, from the trials that ended since this driver started."""
        if not self.ended_here:
            return "time left: not known yet"
        remaining = self.search.planned - sum(trial.status != "running" for trial in self.search.trials.values())
        seconds = remaining * (time.monotonic() - self.started) / self.ended_here
        return f"about {describe_seconds(seconds)} left"

    def __rich__(self) -> RenderableType:
        search, running = self.search, len(self.epochs_now)
        trials = Counter(trial.status for trial in search.trials.values())
        head = Text.assemble(
            (f"{search.experiment}  {search.id}", "bold"),
            f"   {trials['finished']} done  {trials['running']} running  {trials['failed']} failed"
            f"  of {search.planned}   {describe_seconds(time.monotonic() - self.started)}, {self.left()}",
        )
        lines: list[RenderableType] = [head, Text(self.best() or "no epoch finished yet", style="green")]
        if self._best is not None:
            lines.append(Text("  " + describe_settings(self._best.settings), style="dim"))
        lines += [Text(line) for line in list(self.epochs_now.values())[:MOST_RUNNING]]
        if running:
            lines.append(Text(f"{sum(self.videos_per_second.values()):,.0f} videos/s in training", style="dim"))
        return Group(*lines)


def describe_epoch(trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> str:
    """One line with the numbers one acts on: an epoch of training, of pretraining, or the end of one done elsewhere."""
    losses = {"loss_train": "loss", "loss_pretrain": "contrastive loss"}
    loss = "".join(f"{name} {metrics[key]:.3f}  " for key, name in losses.items() if key in metrics)
    rate = "took the encoder of another trial"
    if "videos_per_second" in metrics:
        rate = f"{metrics['videos_per_second']:,.0f} videos/s"
    return f"trial {trial.number:03d}  epoch {epoch}/{epochs}  {loss}GAP {metrics['gap']:.4f}  {rate}"


def describe_settings(settings: Mapping[str, Any]) -> str:
    """A trial's settings on one line."""
    return "  ".join(f"{path}={_cell(value)}" for path, value in settings.items())


def describe_seconds(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def settings_table(columns: Sequence[str], paths: Sequence[str]) -> Table:
    """An empty table of trials: the columns, then one for each setting, its path broken after the dots."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right")
    for path in paths:
        table.add_column(path.replace(".", ".\n"), justify="right", vertical="bottom")
    return table


def setting_cells(settings: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """A trial's cells in the columns of its settings."""
    return [_cell(settings.get(path)) for path in paths]


def leader_table(trials: Sequence[TrialHistory], paths: Sequence[str]) -> Table:
    """The trials, best first, with the settings that were searched."""
    table = settings_table(("trial", "GAP", "epoch", "ended"), paths)
    for trial in trials:
        facts = f"{trial.number:03d}", f"{trial.score:.4f}", str(trial.best_epoch), trial.stopped_by or "by itself"
        table.add_row(*facts, *setting_cells(trial.settings, paths))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Forgiving(io.FileIO):
    """A file that takes what its disk has no room for, and drops it."""

    @classmethod
    def text(cls, descriptor: int) -> io.TextIOWrapper:
        """For lines of text; the descriptor stays open."""
        file = cls(descriptor, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8", errors="replace", line_buffering=True)

    def write(self, content: Any) -> int:
        """All of it, or nothing, and it is gone."""
        try:
            return super().write(content)
        except OSError as error:
            if disk_full_message(error) is None:
                raise
            return memoryview(content).nbytes


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send stdout and stderr of this process and its children to `log`, at the level of file descriptors.

    What this process prints and the log's disk has no room for is lost, and who prints it goes on.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    out, error = _Forgiving.text(1), _Forgiving.text(2)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            yield
    finally:
        out.flush()
        error.flush()
        for descriptor, target in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
