"""Simulated slots for `driver.py`: a manager of actors for Tune, whose actors are events on a simulated clock.

How long a slot takes to start, to train and to end was measured on real searches (driver_calibration.json).
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from ray.air.execution._internal.tracked_actor import TrackedActor

EPOCHS = 8


@dataclass
class Clock:
    """The time of the simulation."""

    now: float = 0.0  # seconds


@dataclass
class Delays:
    """Durations in seconds, drawn from those of real trials."""

    calibration: Mapping[str, Any]
    medians: Mapping[str, float]  # of the durations that are not to be as long as in those trials, by name
    chance: random.Random = field(default_factory=partial(random.Random, 1))

    def draw(self, name: str) -> float:
        """The duration of a `slot_start`, `worker_start`, `reset`, `next_trial`, `epoch`, `report` or `slot_stop`."""
        seconds = self.calibration["seconds"][name]
        drawn = float(np.interp(self.chance.random(), self.calibration["quantiles"], seconds))
        return drawn / float(np.median(seconds)) * self.medians[name] if name in self.medians else drawn


@dataclass(eq=False)
class Slot:
    """A simulated slot."""

    trial: dict[str, Any]  # the configuration of its trial
    live: bool = False  # whether it has started
    new: bool = True  # whether its workers have trained no trial yet
    reports: Iterator[tuple[float, dict[str, Any]]] = field(default_factory=lambda: iter(()))
    trials: int = 0  # that it has ended


class Slots:
    """Replaces Tune's actor manager: its actors are slots, whose reports are events on a clock."""

    def __init__(self, clock: Clock, delays: Delays, seconds: Callable[[], float]) -> None:
        """Have no slot yet.

        Args:
            clock: of the simulation.
            delays: how long events take.
            seconds: returns the seconds that the driver has used so far.
        """
        self._clock, self._delays, self._seconds = clock, delays, seconds
        self._ids, self._order = itertools.count(), itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._slots: dict[TrackedActor, Slot] = {}
        self._used = seconds()
        self.late: list[float] = []  # seconds that an event waited for the driver
        self.busy = self.trained = 0.0  # seconds of the driver, and of all slots
        self.requested = self.started = 0  # slots so far
        self.num_actor_tasks = 0
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[None]] = {}

    num_total_actors = property(lambda self: len(self._slots))
    num_live_actors = property(lambda self: len(self._live_actors_to_ray_actors_resources))
    num_pending_actors = property(lambda self: self.num_total_actors - self.num_live_actors)

    def add_actor(
        self, cls: Any, resource_request: Any, kwargs: dict[str, Any], on_start: Any, on_stop: Any, on_error: Any
    ) -> TrackedActor:
        """Start a slot, for its first trial."""
        actor = TrackedActor(next(self._ids), on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._slots[actor] = Slot(kwargs["config"])
        self.requested += 1
        self._at(self._clock.now + self._delays.draw("slot_start"), partial(self._start, actor))
        return actor

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Whether a slot has started."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """No slot fails."""
        return False

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: tuple[Any, ...] = (),
        on_result: Any = None,
        **options: Any,
    ) -> None:
        """Give a slot its next trial, or wait for its next report; its end needs no task."""
        slot = self._slots[tracked_actor]
        if method_name == "reset":
            (slot.trial,) = args
            due = self._clock.now + self._delays.draw("reset")
            self._answer(tracked_actor, due, partial(self._reset, tracked_actor, on_result))
        elif method_name == "train":
            due, report = next(slot.reports)
            self._answer(tracked_actor, due, partial(on_result, tracked_actor, report))

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Forget the tasks of a slot: its trial has ended."""
        self._slots[tracked_actor].trials += 1

    def remove_actor(self, tracked_actor: TrackedActor, **options: Any) -> bool:
        """End a slot; returns whether it had started."""
        live = self._slots.pop(tracked_actor).live
        if live:
            del self._live_actors_to_ray_actors_resources[tracked_actor]
            self._at(self._clock.now + self._delays.draw("slot_stop"), partial(_stopped, tracked_actor))
        return live

    def cleanup(self) -> None:
        """Do nothing: there are no processes."""

    def next(self, timeout: float | None = None) -> bool:
        """Run the next event, after the clock has advanced by the time that the driver has used since the last one."""
        used = self._seconds()
        self.busy += used - self._used
        self._clock.now += used - self._used
        self._used = used
        if not self._due:
            return False
        due, _, event = heapq.heappop(self._due)
        self.late.append(max(0.0, self._clock.now - due))
        self._clock.now = max(self._clock.now, due)
        event()
        return True

    def _at(self, due: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._due, (due, next(self._order), event))

    def _start(self, actor: TrackedActor) -> None:
        if actor in self._slots:
            self.started += 1
            self._slots[actor].live = True
            self._live_actors_to_ray_actors_resources[actor] = (None,)
            self._take(actor)
            actor._on_start(actor)

    def _reset(self, actor: TrackedActor, on_result: Any) -> None:
        self._take(actor)
        on_result(actor, True)

    def _answer(self, actor: TrackedActor, due: float, event: Callable[[], None]) -> None:
        """Answer a task of Tune at the time `due`, unless its trial has ended by then."""
        slot = self._slots[actor]
        trials = slot.trials

        def answer() -> None:
            if actor in self._slots and slot.trials == trials:
                event()

        self._at(due, answer)

    def _take(self, actor: TrackedActor) -> None:
        """A slot takes its trial."""
        slot = self._slots[actor]
        wait = self._delays.draw("worker_start" if slot.new else "next_trial")
        slot.reports, slot.new = self._reports(slot.trial, self._clock.now + wait), False

    def _reports(self, trial: dict[str, Any], now: float) -> Iterator[tuple[float, dict[str, Any]]]:
        """The reports of a trial that begins at the time `now`, each with the moment at which Tune can receive it."""
        if "score" in trial:
            best = {"winner": trial["trial_id"], "scores": {}, "classes": {}}
            yield now + self._delays.draw("epoch"), best | {"done": True, "training_iteration": 1}
            return
        for metrics in learning_curve(trial):
            seconds = self._delays.draw("epoch")
            self.trained += seconds
            now += seconds
            last = {"done": metrics["epoch"] == metrics["epochs"]}
            yield now + self._delays.draw("report"), metrics | last | {"seconds": seconds, "time_this_iter_s": seconds}


def _stopped(actor: TrackedActor) -> None:
    if actor._on_stop:
        actor._on_stop(actor)


def learning_curve(configuration: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The reports of a trial: its settings give an asymptote, which it approaches within some epochs, with noise."""
    values, noise = configuration["values"], random.Random(configuration["number"])
    rate, dropout = math.log10(values["optimizer.learning_rate"]), values["model.dropout"]
    l2 = math.log10(values.get("loss.l2.loguniform", 1))
    asymptote = 0.69 - 0.04 * (rate + 3) ** 2 - 0.4 * (dropout - 0.55) ** 2 - 0.005 * (l2 - 2.5) ** 2
    asymptote += 0.00001 * values["model.hidden"] - 0.02 * float(values["loss.pos_weight_power"])
    best = 0.0
    for epoch in range(1, EPOCHS + 1):
        gap = asymptote * (1 - 0.4 * math.exp(-epoch / 2)) + noise.gauss(0, 0.002)
        best = max(best, gap)
        named = {"gap": gap, "gap_best": best, "hit_at_1": gap, "perr": gap, "map": gap / 2}
        losses = {"loss_train": 10 - gap, "loss_validate": 11 - gap, "learning_rate": 10**rate}
        place = {"epochs": EPOCHS, "tags": {"host": "simulated", "device": "cpu"}, "training_iteration": epoch}
        yield {"epoch": epoch, **named, **losses, "videos_per_second": 1e5, **place}
