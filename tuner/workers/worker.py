"""What the workers of a slot do. Train starts them, most often one, and each runs `work` in the process with the GPU.

They open the data, and then train one trial after the other with the generator of tuner/training/pipelines.py; the
worker of rank 0 reports each epoch. There are three kinds of failures:

    again      a second attempt may succeed: the worker died, an epoch hangs, the GPU or the storage has an error. The
               process ends, Train starts a new one, and the trial resumes from its last checkpoint.
    error      the trial would fail again: the loss diverged, there is too little memory, a library refuses the settings
    fatal      every trial would fail: a damaged shard, a full disk. The search ends, and a resume continues its trials.
"""

import gc
import os
import pickle
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch

from data.cache.progress import BuildProgress
from data.errors import DataError
from tuner.cluster.resources import Resources, threads_of
from tuner.config.experiment import Experiment
from tuner.errors import EpochTimeout, TrialOutOfMemory, TunerError, in_one_line
from tuner.storage.place import Place
from tuner.storage.scratch import scratch_folder
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.ranks import Ranks
from tuner.workers.messages import Assignment
from tuner.workers.process import begin_trial
from tuner.workers.reports import Reporter, checkpoints
from tuner.workers.stop_signal import StopSignal, TrialStopped
from tuner.workers.trial import Job, again, run

# Seconds between two sentences about what a worker waits for.
SAY_SECONDS = 10.0


class EndOfProcess(Exception):
    """This worker process has ended on purpose; Train starts a new one."""


def work(slot: Any, sealed: bytes) -> None:
    """Train's loop: take trials from the actor `slot` until there are no more.

    Args:
        slot: the actor of tuner/workers/slot.py.
        sealed: the other arguments of `Worker`, pickled.
    """
    Worker(slot, **pickle.loads(sealed)).work()


class Worker:
    """One process of a slot."""

    def __init__(
        self,
        slot: Any,
        *,
        experiment: Experiment,
        trials: Place,
        encoders: Place,
        resources: Resources,
        fingerprint: str,
        score_best: Callable[..., dict[str, Any]],
    ) -> None:
        """Prepare what all trials need: torch, the device and the data."""
        self._score_best = score_best
        self._slot, self._experiment = slot, experiment
        self._trials, self._encoders, self._resources = trials, encoders, resources
        self._device = ray.train.torch.get_device() if resources.gpu else torch.device("cpu")
        self._ranks = Ranks.of_this_process()
        self._group = self._ranks.gather(uuid.uuid4().hex)[0]
        # The first optimizer of a process imports it in its first epoch: 0.9 s, and many times that on a busy machine.
        import_module("torch._dynamo")
        gc.freeze()  # what is imported now stays: looking through it would take 0.2 s before each trial
        self._data: Dataset | None = None
        self._open = partial(open_dataset, experiment.data, self._tell_decoding, fingerprint=fingerprint)
        self._told = time.monotonic()  # when this worker has last said what it waits for

    def work(self) -> None:
        """Train trials until there are no more, or until the process is to be a new one."""
        limit = self._experiment.search.trials_per_worker
        taken = 0
        self._prepare_data()
        while (assignment := self._ask("take", self._group, self._ranks.rank, taken)) is not None:
            taken += 1
            with scratch_folder() as scratch:  # for each trial: a worker that waits may be killed, and leaves nothing
                may_go_on = self._train(assignment, scratch)
            if not may_go_on or taken == limit:
                self._ask("excuse")
                raise EndOfProcess(f"after {taken} trials")

    def _prepare_data(self) -> None:
        """Open the data while there may be no trial yet; a trial reports what is wrong with it."""
        try:
            self._data = self._open(ranks=self._ranks)
        except DataError as error:
            print(f"the data cannot be opened: {error}", file=sys.stderr)

    def _tell_decoding(self, progress: BuildProgress) -> None:
        """Say that this node decodes shards, where it takes long: each node has a cache of its own."""
        now = time.monotonic()
        if now - self._told < SAY_SECONDS:
            return
        self._told = now
        what = "waits for another process that decodes shards" if progress.waiting_for_lock else "decodes shards"
        done = f"{progress.shards_done:,} of {progress.shards_total:,}, {progress.num_videos:,} videos"
        self._ask("say", f"{socket.gethostname()} {what}: {done}")

    def _train(self, assignment: Assignment, scratch: Path) -> bool:
        """Train a trial to its end; returns whether this process may train another one."""
        if assignment.suggestion.get("score"):
            return self._score(assignment.number)
        begin_trial(self._device, threads_of(self._resources.cpu))
        number, job = assignment.number, self._job(assignment.suggestion)
        stop = StopSignal(partial(self._ask, "until_unwanted", number), self._ranks, self._device)
        reporter = Reporter(job.folder, scratch, partial(self._ask, "report", number))
        try:
            run(
                job,
                open_data=partial(self._watched_data, stop),
                device=self._device,
                checkpoints=checkpoints(job.folder, scratch, self._ranks),
                report=reporter if self._ranks.rank == 0 else lambda *report: None,
                on_timeout=partial(self._end_process, number),
                ranks=self._ranks,
            )
            reporter.wait()
        except TrialStopped:
            return True
        except TrialOutOfMemory as error:
            self._ask("explain", number, f"{type(error).__name__}: {error}", False)
            return self._ranks.size == 1 and self._device.type == "cpu"
        except Exception as error:
            may_succeed = self._ranks.size > 1 or again(error)
            self._ask("explain", number, in_one_line(error), may_succeed)
            if may_succeed:
                raise
            traceback.print_exc()
        finally:
            reporter.close()
        return True

    def _score(self, number: int) -> bool:
        """Score the best trial of the search, on rank 0."""
        if self._ranks.rank == 0:
            notes: list[str] = []
            try:
                # A share of the videos is not enough.
                data = self._open() if self._experiment.data.cache == "share" else self._data or self._open()
                scored = self._score_best(self._trials.parent, self._experiment, data, self._device, notes.append)
                self._ask("report", number, {**scored, "notes": notes})
            except (TunerError, DataError, OSError, RuntimeError) as error:
                self._ask("report", number, {"error": f"{type(error).__name__}: {error}", "notes": notes})
        return True

    def _watched_data(self, stop: StopSignal) -> Dataset:
        """The data of a trial, which ends when `stop` says so."""
        self._data = self._ranks.together(lambda: self._data or self._open(ranks=self._ranks))
        return replace(self._data, before_batch=stop)

    def _job(self, suggestion: Mapping[str, Any]) -> Job:
        trial, trial_id = self._experiment.trial_config(suggestion["values"]), suggestion["trial_id"]
        return Job(
            trial_id=trial_id,
            folder=self._trials / trial_id,
            trial=trial,
            seed=trial.seed(suggestion["number"]),
            encoder_store=EncoderStore(directory=self._encoders, trial_id=trial_id),
            epoch_timeout=self._experiment.search.epoch_timeout,
        )

    def _end_process(self, number: int, error: EpochTimeout) -> None:
        """End this process, whose training hangs; called from another thread."""
        try:
            self._ask("explain", number, f"{type(error).__name__}: {error}", True)
        finally:
            os._exit(1)  # also where the slot cannot be told

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the slot, and wait for its answer."""
        return ray.get(getattr(self._slot, method).remote(*arguments))
