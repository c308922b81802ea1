"""When a search ends before its last planned trial: out of time, at its goal, a plateau, a signal, an error."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray.tune import Stopper

from data import remote
from data.errors import DataError
from data.retry import text_of
from tuner.config.experiment import Experiment
from tuner.errors import TunerError, in_one_line
from tuner.storage.journal import SearchHistory, Unsaved


class StopRule(Unsaved, Stopper):
    """Decides when the search ends before its last planned trial; Tune asks it after every event."""

    def __init__(self, experiment: Experiment, search: SearchHistory) -> None:
        """Start the clock, at the time that earlier drivers of the search have used.

        Args:
            experiment: its settings `search` limit time, score, failures and plateaus.
            search: the journal of the search, which grows while the search runs.
        """
        self._config, self._search = experiment.search, search
        self._used, self._checked = search.seconds, time.monotonic()  # seconds of all drivers, up to this moment
        self._reported = 0  # reports at the last check
        self._interrupted = threading.Event()
        self._ended = -1  # trials that had ended at the last check
        self.reason: str | None = None
        self.trains = True  # False: what is left is to score the best trial, and no reason ends that
        self.exhausted = False  # whether everything has been tried: no new trial begins
        self.fatal_error: str | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal or a fatal error ended the search: a resume continues the trials that were running."""
        return self._interrupted.is_set() or self.fatal_error is not None

    @property
    def ended_by(self) -> str | None:
        """What ended the search before its last planned trial, for the journal."""
        return self.reason or ("exhausted" if self.exhausted else None)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the drivers of the search have used its time budget."""
        return self._config.time_budget is not None and self._used > self._config.time_budget

    def halt(self, fatal_error: str) -> None:
        """End the search after an error that every trial would meet, such as a full disk; the first one is kept."""
        self.fatal_error = self.fatal_error or fatal_error

    @contextmanager
    def halting(self) -> Iterator[None]:
        """End the search in order where the block meets an error of the storage.

        In Tune's loop such an exception would abort the search, or let Tune start a trial again that has ended.
        """
        try:
            yield
        except (TunerError, DataError) as error:
            self.halt(str(error))
        except remote.errors(OSError) as error:
            reason = text_of(error) if getattr(error, "strerror", None) else in_one_line(error)
            self.halt(f"{getattr(error, 'filename', None) or 'the storage'}: {reason}")

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial: the scheduler does that."""
        return False

    def stop_all(self) -> bool:
        """Whether to end the search. Tune asks after every event."""
        if not self.trains:
            return self.interrupted
        if self.reason is None and not self.interrupted:
            self.reason = self._due()
        return self.interrupted or self.reason is not None

    def _due(self) -> str | None:
        config, search = self._config, self._search
        now = time.monotonic()
        self._used, self._checked = self._used + (0 if search.paused else now - self._checked), now
        if search.stopped:
            return "user"
        if self.is_out_of_time:
            return "time_budget"
        if config.goal is not None:
            new, self._reported = search.reported[self._reported :], len(search.reported)
            if any(float(search.trials[id].reports[epoch]["gap"]) >= config.goal for id, epoch in new):
                return "goal"
        if search.num_ended == self._ended:
            return None  # nothing has changed since the last event
        self._ended = search.num_ended
        if len(search.failed) > config.failures.per_search:
            return "failures"
        if config.plateau is not None:
            ended = [t for t in search.trials.values() if t.status == "finished" and t.score is not None]
            before, recent = ended[: -config.plateau.trials], ended[-config.plateau.trials :]
            if (
                before
                and max(t.score or 0 for t in recent) <= max(t.score or 0 for t in before) + config.plateau.min_gain
            ):
                return "plateau"
        return None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the search in order during the block; a second signal ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupted.set()
            for each in before:
                signal.signal(each, signal.default_int_handler)

        for number in before:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the block, as Ctrl-C does, so that everything open is closed in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
