"""What a trial's workers do. Train starts them, most often one, and each runs `work` in the process that holds the GPU.

They train with the generator of tuner/training/pipelines.py, and the worker of rank 0 reports each epoch. There are
three kinds of failures. Where a second attempt may succeed (a worker or an actor died, an epoch hangs), the worker
raises an exception, and Ray starts the trial again from its last checkpoint. Where it cannot (the loss diverged, there
is too little memory), the worker sends a report with the key `error`, and the trial ends. A failure that has nothing to
do with the trial and that every trial would meet (a damaged shard, a full disk) is a report with the key `fatal`: the
search ends, and a resume continues its trials.
"""

import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import ray.train.torch
import torch

from data.errors import DataError
from tuner.cluster.resources import Resources
from tuner.config.experiment import Experiment
from tuner.errors import (
    CheckpointDamaged,
    EpochTimeout,
    TrialOutOfMemory,
    TunerError,
    disk_full_message,
    first_line,
)
from tuner.storage.place import Place
from tuner.training import checkpoint
from tuner.training.config import Trial
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.data_config import DataConfig
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train
from tuner.training.ranks import ALONE, Ranks
from tuner.workers import ray_internals, slots
from tuner.workers.reports import Reporter, Save, kept
from tuner.workers.watchdog import epoch_limit

# Parts of the RuntimeError that PyTorch's CPU allocator raises when there is no more memory.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")

# Takes metrics, the function that saves the state, and the names of the checkpoints to keep.
Report = Callable[[dict[str, Any], Save | None, Sequence[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, as its workers need it."""

    trial_id: str
    folder: Place  # where its checkpoints are stored
    trial: Trial
    data: DataConfig
    fingerprint: str  # of the data; with other data the trial does not train
    seed: int
    resources: Resources
    encoder_store: EncoderStore | None = None  # of pretrained encoders
    turns: int | None = None  # slots of the machine whose workers take turns; None: each worker has its slot
    epoch_timeout: float | None = None  # seconds that an epoch may take; None: there is no limit

    @classmethod
    def of(
        cls,
        *,
        experiment: Experiment,
        trials: Place,
        encoders: Place,
        resources: Resources,
        fingerprint: str,
        turns: int | None,
        trial_id: str,
        number: int,
        values: Mapping[str, Any],
    ) -> "Job":
        """The trial with this number of a search, with these values."""
        trial = experiment.trial_config(values)
        return cls(
            trial_id=trial_id,
            folder=trials / trial_id,
            trial=trial,
            data=experiment.data,
            fingerprint=fingerprint,
            seed=trial.seed(number),
            resources=resources,
            encoder_store=EncoderStore(directory=encoders, trial_id=trial_id),
            turns=turns,
            epoch_timeout=experiment.search.epoch_timeout,
        )


def work(suggestion: Mapping[str, Any], sealed: bytes) -> None:
    """Train's loop.

    Args:
        suggestion: `trial_id`, `number` and `values`.
        sealed: the other arguments of `Job.of`, pickled.
    """
    job = Job.of(**suggestion, **pickle.loads(sealed))
    device = ray.train.torch.get_device() if job.resources.gpu else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, int(job.resources.cpu)))
    ranks = Ranks.of_this_process()
    reporter = Reporter(job.folder, stores=ranks.rank == 0)
    with _turn(job):
        run(
            job,
            device=device,
            checkpoints=reporter.checkpoints(ranks),
            report=reporter,
            on_timeout=ray_internals.fail_worker,
            ranks=ranks,
        )
    reporter.wait()


@contextmanager
def _turn(job: Job) -> Iterator[None]:
    """Do what takes time but hardly any CPU, then wait for a slot."""
    # The first optimizer of a process imports it in its first epoch: 0.9 s, and many times that on a busy machine.
    import_module("torch._dynamo")
    if job.turns is None:
        yield
        return
    with suppress(TunerError, DataError):
        # Decode the data, or check the cache; `run` reports what is wrong with it.
        open_dataset(job.data, fingerprint=job.fingerprint)
    search, _, number = job.trial_id.rpartition("-")
    with slots.turn(search, int(number), job.turns):
        yield


def run(
    job: Job,
    *,
    device: torch.device,
    checkpoints: Iterable[Path],
    report: Report,
    on_timeout: Callable[[Exception], None] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train one trial and report every epoch.

    A report holds the metrics of an epoch, its number, and the `tags` of the trial's run. The first report after a
    resume has the `history` of the checkpoint's epochs: a driver that was killed may have missed the last ones. A
    `note` is shown to the user. All ranks report equally often, and the reports of rank 0 are used.

    Args:
        job: the trial.
        device: where it trains.
        checkpoints: of this trial, newest first; training resumes from the first one that is undamaged.
        report: sends a report to Ray, or to a test.
        on_timeout: called, from another thread, when an epoch takes longer than `job.epoch_timeout`.
        ranks: this worker's rank among those of the trial.
    """
    host = socket.gethostname()
    tags = {"host": host, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    epoch = 0

    def out_of_time() -> None:
        assert on_timeout is not None
        on_timeout(EpochTimeout(f"epoch {epoch + 1} took longer than {job.epoch_timeout:g} s (search.epoch_timeout)"))

    try:
        data = ranks.together(partial(open_dataset, job.data, fingerprint=job.fingerprint))
    except DataError as error:
        report({"fatal": f"{host}: {error}"}, None, ())
        return
    try:
        with _memory(), epoch_limit(job.epoch_timeout, out_of_time) as epoch_ended:
            resume_from, damage = _newest_undamaged(checkpoints, ranks)
            for progress in train(
                job.trial,
                data,
                device=device,
                seed=job.seed,
                resume_from=resume_from,
                encoder_store=job.encoder_store,
                ranks=ranks,
            ):
                epoch = progress.epoch
                metrics: dict[str, Any] = {**progress.metrics, "epochs": job.trial.epochs}
                if damage:
                    start = f"resumed after epoch {epoch}" if progress.repeated else "started again from the beginning"
                    metrics["note"] = tags["note"] = f"{damage}; {start}"
                    damage = ""
                metrics["tags"] = {**tags, **progress.tags}
                if progress.repeated:
                    report(metrics | {"history": list(progress.state.history)}, None, ())  # its checkpoint exists
                else:
                    report(metrics, partial(progress.state.save, trial=job.trial), kept(progress.state.history))
                epoch_ended()
    except (TunerError, DataError) as error:
        if ranks.size > 1 and isinstance(error, TrialOutOfMemory):
            raise  # the other ranks wait, and only an exception ends them
        report({"error": f"{type(error).__name__}: {error}"}, None, ())
    except OSError as error:
        if (message := disk_full_message(error)) is None or ranks.size > 1:  # here the other ranks wait as well
            raise
        report({"fatal": f"{host}: {message}"}, None, ())


def _newest_undamaged(checkpoints: Iterable[Path], ranks: Ranks) -> tuple[Path | None, str]:
    """The first checkpoint that every rank finds undamaged, and what is wrong with those before it."""
    damage: list[str] = []
    for directory in checkpoints:
        try:
            ranks.together(partial(checkpoint.check, directory))
            return directory, "; ".join(damage)
        except CheckpointDamaged as error:
            damage.append(str(error))
    return None, "; ".join(damage)


@contextmanager
def _memory() -> Iterator[None]:
    """Raise TrialOutOfMemory in place of every exception that means it, whichever library raises it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(text in str(error) for text in CPU_OUT_OF_MEMORY):
            raise
        raise TrialOutOfMemory(
            f"not enough memory on {socket.gethostname()} ({first_line(error)}); a smaller batch or a "
            "smaller model needs less"
        ) from error
