"""The live view of a search in a terminal."""

import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from tuner.console.text import describe_epoch, describe_seconds, describe_settings
from tuner.storage.journal import SearchHistory, TrialHistory

MAX_RUNNING = 12  # running trials that the view lists


class SearchView:
    """How far a search is, its best trial so far, and the trials that run; rich renders it twice a second."""

    def __init__(self, search: SearchHistory) -> None:
        """Show `search`, which changes while it is shown."""
        self.search = search
        self.started = time.monotonic()
        self.epochs_now: dict[str, str] = {}
        self.videos_per_second: dict[str, float] = {}
        self.ended_here = 0
        self._best = self._best_of_all()

    def reported(self, trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Replace the line of a running trial."""
        self.epochs_now[trial.id] = describe_epoch(trial, epoch, epochs, metrics)
        self.videos_per_second[trial.id] = metrics.get("videos_per_second", 0.0)
        if self._best is None or (trial.score or 0.0) > (self._best.score or 0.0):
            self._best = trial

    def ended(self, trial: TrialHistory) -> None:
        """Remove the line of a trial that has ended."""
        self.epochs_now.pop(trial.id, None)
        self.videos_per_second.pop(trial.id, None)
        self.ended_here += 1
        if trial is self._best and trial.status == "failed":
            self._best = self._best_of_all()

    def _best_of_all(self) -> TrialHistory | None:
        scored = [trial for trial in self.search.trials.values() if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)

    def best(self) -> str:
        """The best GAP so far, also of running trials, and its gain over trial 0; "" before the first epoch."""
        best = self._best
        if best is None:
            return ""
        untuned = self.search.untuned_score
        gain = f" (+{(best.score or 0) - untuned:.4f} over trial 0)" if untuned is not None else ""
        return f"best {best.number:03d} GAP {best.score:.4f}{gain}"

    def left(self) -> str:
        """The time left, as the remaining trials times the mean time of those that ended under this driver."""
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
        lines += [Text(line) for line in list(self.epochs_now.values())[:MAX_RUNNING]]
        if running:
            lines.append(Text(f"{sum(self.videos_per_second.values()):,.0f} videos/s in training", style="dim"))
        return Group(*lines)
