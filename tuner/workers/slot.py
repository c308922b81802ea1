"""A slot: an actor of Tune that trains trial after trial with the same workers.

    Tune --- suggestion, report ---> Slot (this actor) <--- take, report --- worker 0, 1 … (tuner/workers/worker.py)
                                      |                                        ^
                                      +--- one Ray Train run: a controller ----+ starts them, and again when one is lost

The workers import torch and open the data once. A trial is a message to them, and a report one from them; neither
passes through Train, whose task is to keep the workers running. This actor and Train's controller do not import torch.
"""

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import ray
import ray.tune
from ray.tune import PlacementGroupFactory

from tuner.background import keep_working
from tuner.cluster.resources import Resources
from tuner.storage import searches
from tuner.storage.place import Place
from tuner.workers.mailbox import Mailbox
from tuner.workers.messages import Assignment, is_last
from tuner.workers.train_run import WORKER_VARIABLES, controller_lost, trainer

if TYPE_CHECKING:
    from tuner.config.experiment import Experiment

# Seconds after which a slot without a trial ends its workers and gives back what they hold; about as long as it takes
# to start them. Tune assigns the next trial within milliseconds, if there is one.
IDLE_SECONDS = 10.0
# Seconds after which a trial without workers says what it waits for; then after twice as long each time.
SILENCE_SECONDS = 10.0
# Seconds that the end of a slot waits for its workers to leave their trial.
PATIENCE = 5.0


def slot(
    experiment: "Experiment",
    directory: Place,
    encoders: Place,
    resources: Resources,
    fingerprint: str,
    score_best: Callable[..., dict[str, Any]],
) -> type["Slot"]:
    """The class of a search's slots, for Tune.

    Args:
        experiment: what is searched.
        directory: the search's; a trial's checkpoints are stored in `trials/<trial_id>` in it.
        encoders: where pretrained encoders are kept, for all searches.
        resources: of the workers of a slot.
        fingerprint: of the data that the search began with.
        score_best: scores the best trial of the search (tuner/inference/best_trial.py).
    """
    # An experiment refers to models, hence to torch, which takes seconds to import and hundreds of megabytes. Pickled,
    # it passes through this actor and Train's controller, which need neither.
    sealed = pickle.dumps(
        {
            "experiment": experiment,
            "trials": directory / searches.TRIALS,
            "encoders": encoders,
            "resources": resources,
            "fingerprint": fingerprint,
            "score_best": score_best,
        }
    )
    limit, folder = experiment.search.failures.per_trial, directory / searches.RAY
    variables = {name: os.environ.get(name, value) for name, value in WORKER_VARIABLES.items()}
    known = {"sealed": sealed, "resources": resources, "limit": limit, "folder": folder, "variables": variables}
    return type("Slot", (Slot,), known)


def waiting_for(resources: Resources, free: Mapping[str, float], existing: Mapping[str, float], seconds: float) -> str:
    """Why a trial has no workers yet.

    Args:
        resources: of its workers.
        free: what nobody holds of the cluster's resources, by Ray's names.
        existing: all resources of the cluster.
        seconds: how long it has waited.
    """
    count, since = resources.min_workers, f"for {seconds:.0f} s so far"
    needed = {"CPU": count * resources.cpu, "GPU": count * resources.gpu}
    missing = [name for name, amount in needed.items() if free.get(name, 0) < amount]
    if not missing:
        return f"waits for its workers to start, {since}"
    asked = " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in needed.items() if amount)
    there = " and ".join(f"{free.get(name, 0):g} of {existing.get(name, 0):g} {name}s" for name in missing)
    return f"waits for {asked}, {since}: {there} are free; other programs or trials hold the rest"


class Slot(ray.tune.Trainable):
    """Trains one trial at a time.

    Tune calls its methods, and so do its workers: Ray runs the methods of a class with coroutines on one event loop.
    """

    sealed: ClassVar[bytes]  # what the workers need
    resources: ClassVar[Resources]  # of the workers
    limit: ClassVar[int]  # search.failures.per_trial
    folder: ClassVar[Place]  # for Train's own files
    variables: ClassVar[Mapping[str, str]]  # of the workers' environment

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """What this actor holds; its workers, which train, hold other resources. Tune refuses an empty request."""
        return PlacementGroupFactory([{"memory": 64 * 2**20}])

    def setup(self, config: dict[str, Any]) -> None:
        """Start the workers."""
        self._mailbox = Mailbox(self.limit)
        self._assign(config)
        self._handle = ray.get_runtime_context().current_actor
        self._wanted = threading.Event()  # whether the workers are to run
        self._wanted.set()
        self._idle: asyncio.TimerHandle | None = None
        keep_working("running the workers of a slot", self._run_workers)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial: Tune uses this actor again."""
        self._assign(new_config)
        return True

    def _assign(self, config: dict[str, Any]) -> None:
        self._mailbox.assign(config)
        self._assigned, self._silence = time.monotonic(), SILENCE_SECONDS

    async def train(self) -> dict[str, Any]:
        """Wait for the next report of the trial."""
        if self._mailbox.held:  # what the workers hold is for others meanwhile
            self._pause()
            await self._mailbox.until_released()
            self._assigned, self._silence = time.monotonic(), SILENCE_SECONDS
        if self._idle is not None:
            self._idle.cancel()
        if not self._mailbox.held:
            self._mailbox.resume()
            self._wanted.set()
        patience = asyncio.create_task(self._say_what_it_waits_for())
        try:
            await self._mailbox.until_report()
        finally:
            patience.cancel()
        result: dict[str, Any] = super().train()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._pause)
        return result

    def step(self) -> dict[str, Any]:
        """The next report, which `train` has waited for; the last one says so to Tune."""
        report = self._mailbox.next_report()
        return {**report, "done": is_last(report)}

    async def hold(self, held: bool) -> None:
        """The user has paused the search, or it goes on: after its epoch the trial waits, without workers."""
        self._mailbox.hold(held)

    async def drop(self, trial_id: str) -> None:
        """The user has dropped a trial."""
        self._mailbox.drop(trial_id)

    async def stop(self) -> None:
        """End the slot, once its workers have left their trial. What they are, ends with this actor."""
        self._pause()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._mailbox.until_idle(), PATIENCE)
        super().stop()

    # The workers call these; tuner/workers/mailbox.py describes them.

    async def take(self, group: str, rank: int, taken: int) -> Assignment | None:
        """Wait for the next trial."""
        return await self._mailbox.take(group, rank, taken)

    async def report(self, number: int, report: dict[str, Any]) -> bool:
        """Give Tune a report."""
        return await self._mailbox.report(number, report)

    async def until_unwanted(self, number: int) -> None:
        """Wait until a trial is not to be trained any further."""
        await self._mailbox.until_unwanted(number)

    async def explain(self, number: int, reason: str, again: bool) -> None:
        """Say why a worker is about to end."""
        self._mailbox.explain(number, reason, again=again)

    async def say(self, line: str) -> None:
        """Say what a worker waits for."""
        self._mailbox.say(line)

    async def excuse(self) -> None:
        """Say that a worker is about to end and has not failed."""
        self._mailbox.excuse()

    async def workers_lost(self, reason: str) -> None:
        """Say that workers have ended; Train's controller calls it, and the thread that keeps the workers."""
        self._mailbox.workers_lost(reason)

    async def _say_what_it_waits_for(self) -> None:
        """Say why no worker has taken the trial yet, after ten seconds, and after twice as long each time."""
        while True:
            waited = time.monotonic() - self._assigned
            await asyncio.sleep(max(0.0, self._silence - waited))
            self._silence *= 2
            if not self._mailbox.training:
                free, all = await asyncio.gather(
                    asyncio.to_thread(ray.available_resources), asyncio.to_thread(ray.cluster_resources)
                )
                self._mailbox.say(waiting_for(self.resources, free, all, time.monotonic() - self._assigned))

    def _pause(self) -> None:
        self._wanted.clear()
        self._mailbox.pause()

    def _run_workers(self) -> bool:
        """Run Train for as long as the slot wants workers; called again, so with a new controller when one is lost."""
        self._wanted.wait()
        try:
            trainer(self._handle, self.sealed, self.resources, self.folder, self.variables).fit()
        except Exception as error:
            ray.get(self._handle.workers_lost.remote(controller_lost(error)))
            raise
        return False
