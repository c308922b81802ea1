"""The messages of a slot: Tune gives trials and asks for reports, the workers ask for trials and give reports.

One asyncio object, without Ray. Everything in it runs on one event loop, so nothing happens between two lines that do
not wait.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.workers.messages import Assignment, is_last, too_often


@dataclass(slots=True)
class _Trial:
    """The newest trial of a slot."""

    assignment: Assignment
    failures: int  # how often its workers were lost
    reports: deque[dict[str, Any]] = field(default_factory=deque)  # those that Tune has not received
    given: int = 0  # reports of its workers and of the slot so far
    received: int = 0  # of these, by Tune
    ended: bool = False  # whether the last report is among them

    def put(self, report: dict[str, Any]) -> int:
        self.reports.append(report)
        self.ended = self.ended or is_last(report)
        self.given += 1
        return self.given


class Mailbox:
    """Holds the trial of a slot, and its reports until Tune receives them.

    A trial is open from `assign` to its last report, until Tune assigns the next one, and while the slot is not paused.
    Workers that are started again receive the open trial again, and resume it from its last checkpoint.
    """

    def __init__(self, limit: int) -> None:
        """Hold no trial yet.

        Args:
            limit: how often the workers of a trial may be lost before it fails (search.failures.per_trial).
        """
        self._limit = limit
        self._trial = _Trial(Assignment(0, {}), failures=0, ended=True)
        self._paused = False
        self.held = False  # whether the search is paused: after its epoch, the trial waits
        self._reason: str | None = None  # why a worker is about to end, in its own words
        self._excused = False  # whether a worker is about to end that has not failed
        self._group = ""  # the name of the workers that were started together last
        self._taken: list[Assignment] = []  # what their rank 0 has taken, in order
        self._training = False  # whether they train
        self._changed = asyncio.Event()  # set at the next change, and then replaced

    # Tune's side

    def assign(self, suggestion: Mapping[str, Any]) -> None:
        """Give the slot its next trial; the one before it is not wanted any more."""
        number, self.held = self._trial.assignment.number + 1, False
        self._trial = _Trial(Assignment(number, suggestion), failures=suggestion.get("failures", 0))
        self._notify()

    async def until_report(self) -> None:
        """Wait until there is a report for Tune."""
        await self._until(lambda: bool(self._trial.reports))

    def next_report(self) -> dict[str, Any]:
        """Remove and return the first report."""
        self._trial.received += 1
        self._notify()
        return self._trial.reports.popleft()

    def hold(self, held: bool) -> None:
        """The search is paused, or goes on."""
        self.held = held
        self._notify()

    async def until_released(self) -> None:
        """Wait until the search goes on, or the trial has ended."""
        await self._until(lambda: not self.held or bool(self._trial.reports))

    def drop(self, trial_id: str) -> None:
        """End a trial that the user has dropped, unless it has ended."""
        if self._trial.assignment.suggestion.get("trial_id") == trial_id and not self._trial.ended:
            self._trial.put({"dropped": True})
            self._notify()

    def pause(self) -> None:
        """Let the workers end."""
        self._paused = True
        self._notify()

    def resume(self) -> None:
        """Give out trials again, the open one first."""
        self._paused = False
        self._notify()

    async def until_idle(self) -> None:
        """Wait until no worker trains."""
        await self._until(lambda: not self._training)

    # The workers' side

    async def take(self, group: str, rank: int, taken: int) -> Assignment | None:
        """Wait for the next trial of a worker.

        Rank 0 takes the open trial. The other ranks take what it took, in the same order: so all of them train the same
        trials, however soon one is stopped.

        Args:
            group: the name of the workers that were started together.
            rank: of the worker among them.
            taken: the number of trials that it has taken.

        Returns:
            None: the worker ends.
        """
        if rank == 0:
            if group != self._group:
                self._group, self._taken = group, []
            self._training = False
            self._notify()
            await self._until(lambda: self._paused or self._open)
            if not self._paused:
                self._training = True
                self._taken.append(self._trial.assignment)
                self._notify()
        else:
            await self._until(lambda: self._paused or (group == self._group and len(self._taken) > taken))
        return None if self._paused else self._taken[taken]

    async def report(self, number: int, report: dict[str, Any]) -> bool:
        """Give Tune a report, and wait until it has received it.

        Args:
            number: of the assignment that it belongs to.
            report: as tuner/workers/messages.py describes them.

        Returns:
            False: Tune has stopped the trial instead.
        """
        trial = self._trial
        if trial.assignment.number != number or trial.ended:
            return False
        place = trial.put(report)
        self._notify()
        await self._until(lambda: trial.received >= place or trial is not self._trial)
        return trial.received >= place

    async def until_unwanted(self, number: int) -> None:
        """Wait until an assignment is not to be trained any further."""
        await self._until(lambda: not (self._open and self._trial.assignment.number == number))

    def explain(self, number: int, reason: str, *, again: bool) -> None:
        """A worker says why it is about to end in the middle of a trial.

        Args:
            number: of its assignment.
            reason: in a sentence.
            again: whether another attempt may succeed.
        """
        if number != self._trial.assignment.number or self._trial.ended:
            return
        if again:
            self._reason = reason
        else:
            self._trial.put({"error": reason, "cause": "settings"})
            self._notify()

    def say(self, line: str) -> None:
        """A worker says what it waits for; nobody hears it between two trials."""
        if not self._trial.ended:
            self._trial.put({"said": line})
            self._notify()

    def excuse(self) -> None:
        """A worker is about to end between two trials: nothing has failed."""
        self._excused = True

    # Train's side

    def workers_lost(self, reason: str) -> None:
        """Workers have ended, and Train starts them again.

        Args:
            reason: as Train sees it; what the worker itself has said takes precedence.
        """
        reason, excused = self._reason or reason, self._excused
        self._reason, self._excused, self._training = None, False, False
        if not (excused or self._trial.ended):
            self._trial.failures += 1
            if self._trial.failures > self._limit:
                self._trial.put({"error": too_often(reason, self._trial.failures), "cause": "other"})
            else:
                self._trial.put({"failure": reason, "failures": self._trial.failures})
        self._notify()

    @property
    def training(self) -> bool:
        """Whether a worker trains the trial."""
        return self._training

    @property
    def _open(self) -> bool:
        return not (self._trial.ended or self._paused)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
