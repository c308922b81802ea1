"""The live view of a search in a terminal."""

import time
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from tuner.console.text import describe_epoch, describe_seconds, describe_settings
from tuner.storage.journal import SearchHistory, TrialHistory

MAX_RUNNING = 12  # running trials that the view lists
LEADERS = 3  # of the best trials


class SearchView:
    """How far a search is, its best trials so far, and the trials that run; rich renders it twice a second.

    Rich renders it from a thread of its own, and this thread ends with an exception: what the driver changes meanwhile
    is not iterated over, only counted or copied.
    """

    def __init__(self, search: SearchHistory, results: str = "") -> None:
        """Show `search`, which changes while it is shown.

        Args:
            search: the search.
            results: how to see the results in a browser, a command or an address.
        """
        self.search, self._results = search, results
        self.started = time.monotonic()
        self.epochs_now: dict[str, str] = {}
        self.videos_per_second: dict[str, float] = {}
        ended = [trial for trial in search.trials.values() if trial.status != "running"]
        self._failed = sum(trial.status == "failed" for trial in ended)
        self._ended, self._epochs_of_ended = len(ended), sum(trial.last_epoch for trial in ended)
        self._epochs: dict[str, int] = {}  # of the running trials, by id
        self._running: set[str] = set()  # ids of the trials that a slot has
        self._best = self._best_of_all()
        self._timing = _Timing()

    def began(self, trial: TrialHistory) -> None:
        """A slot has taken a trial."""
        self._running.add(trial.id)

    def reported(self, trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Replace the line of a running trial."""
        self._running.add(trial.id)
        self.epochs_now[trial.id] = describe_epoch(trial, epoch, epochs, metrics)
        self.videos_per_second[trial.id] = metrics.get("videos_per_second", 0.0)
        self._epochs[trial.id] = epoch
        self._best = _leaders([trial, *(one for one in self._best if one is not trial)])
        self._timing.update(self._epochs_left(epochs))

    def ended(self, trial: TrialHistory) -> None:
        """Remove the line of a trial that has ended."""
        self.epochs_now.pop(trial.id, None)
        self.videos_per_second.pop(trial.id, None)
        self._epochs.pop(trial.id, None)
        self._running.discard(trial.id)
        self._ended += 1
        self._failed += trial.status == "failed"
        self._epochs_of_ended += trial.last_epoch
        if trial.status == "failed" and trial in self._best:
            self._best = self._best_of_all()

    def _best_of_all(self) -> list[TrialHistory]:
        return _leaders([trial for trial in self.search.trials.values() if trial.score is not None])

    def _epochs_left(self, epochs: int) -> float:
        """The epochs that the search still trains, if the next trials have as many as those that have ended.

        Args:
            epochs: of the trial that has just reported, for a search of which no trial has ended.
        """
        of_a_trial = self._epochs_of_ended / self._ended if self._ended else epochs
        trained = sum(min(epoch, of_a_trial) for epoch in self._epochs.values())
        return max(0.0, (self.search.planned - self._ended) * of_a_trial - trained)

    def best(self) -> str:
        """The best GAP so far, also of running trials, and its gain over trial 0; "" before the first epoch."""
        if not self._best:
            return ""
        best, untuned = self._best[0], self.search.untuned_score
        gain = f" (+{(best.score or 0) - untuned:.4f} over trial 0)" if untuned is not None else ""
        return f"best {best.number:03d} GAP {best.score:.4f}{gain}"

    def left(self) -> str:
        """The time left."""
        seconds = self._timing.left()
        if seconds is None:
            return "time left: not known yet"
        return f"about {describe_seconds(seconds)} left" if self._ended else f"at most {describe_seconds(seconds)} left"

    def __rich__(self) -> RenderableType:
        search = self.search
        running, done = len(self._running), self._ended - self._failed
        waiting = max(0, len(search.trials) - self._ended - running)
        counts = "paused  " if search.paused else ""
        counts += f"{done} done  {running} running  {f'{waiting} waiting  ' if waiting else ''}{self._failed} failed"
        # The console lets long lines run on, and a live view cuts them at the end of the terminal.
        head = Text.assemble(
            (f"{search.experiment}  {search.id}", "bold"),
            f"   {counts}  of {search.planned}   {describe_seconds(time.monotonic() - self.started)}, {self.left()}",
            no_wrap=False,
            overflow="fold",
        )
        lines: list[RenderableType] = [head, Text(self.best() or "no epoch finished yet", style="green")]
        for number, trial in enumerate(self._best):
            first = f"  {trial.number:03d} {trial.score:.4f}  " if len(self._best) > 1 else "  "
            lines.append(Text(first + describe_settings(trial.settings), style="dim" if number else ""))
        lines += [Text(line) for line in list(self.epochs_now.values())[:MAX_RUNNING]]
        if self.epochs_now:
            rate = sum(list(self.videos_per_second.values()))
            lines.append(Text(f"{rate:,.0f} videos/s in training", style="dim"))
        if self._results:
            lines.append(Text(f"MLflow: {self._results}", style="dim", no_wrap=False, overflow="fold"))
        return Group(*lines)


class _Timing:
    """The time left, from the pace of all epochs since the first one; between two epochs it counts down."""

    def __init__(self) -> None:
        self._first: float | None = None  # when the first epoch was reported
        self._epochs = 0  # since then
        self._end: float | None = None  # of the search, by the clock of this process

    def update(self, epochs_left: float) -> None:
        """An epoch was reported."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return
        self._epochs += 1
        self._end = now + epochs_left * (now - self._first) / self._epochs

    def left(self) -> float | None:
        """Seconds; None: not known yet."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def _leaders(trials: list[TrialHistory]) -> list[TrialHistory]:
    """The best of these trials, of equal ones the first."""
    return sorted(trials, key=lambda trial: trial.rank)[:LEADERS]
