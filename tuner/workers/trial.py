"""One trial in a worker: it trains, and reports every epoch. Without Ray, so that a test can run it."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.errors import DataError, ShardError, UnreachableError
from tuner.errors import (
    CheckpointDamaged,
    EpochTimeout,
    TrialFailed,
    TrialOutOfMemory,
    TunerError,
    disk_full_message,
    first_line,
)
from tuner.storage.place import Place
from tuner.training import checkpoint
from tuner.training.config import Trial
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.dataset import Dataset
from tuner.training.pipelines import train
from tuner.training.ranks import ALONE, Ranks
from tuner.workers.process import memory_gib
from tuner.workers.reports import Save, kept
from tuner.workers.watchdog import epoch_limit

# Parts of the RuntimeError that PyTorch's CPU allocator raises when there is no more memory.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
# Parts of the errors of a GPU and of what runs on it; the process that has got one cannot use the GPU any more.
GPU_ERRORS = ("CUDA", "CUBLAS", "CUDNN", "NCCL")

# Takes metrics, the function that saves the state, and the names of the checkpoints to keep.
Report = Callable[[dict[str, Any], Save | None, Sequence[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, as a worker trains it."""

    trial_id: str
    folder: Place  # where its checkpoints are stored
    trial: Trial
    seed: int
    encoder_store: EncoderStore | None = None  # of pretrained encoders
    epoch_timeout: float | None = None  # seconds that an epoch may take; None: there is no limit


def run(
    job: Job,
    *,
    open_data: Callable[[], Dataset],
    device: torch.device,
    checkpoints: Iterable[Path],
    report: Report,
    on_timeout: Callable[[EpochTimeout], None] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train one trial and report every epoch; tuner/workers/messages.py describes the reports.

    The `tags` of a report are those of the trial's run, and a `note` is shown to the user.

    Args:
        job: the trial.
        open_data: gives the data.
        device: where it trains.
        checkpoints: of this trial, newest first; training resumes from the first one that is undamaged.
        report: sends a report to the slot, or to a test. Every rank calls it, equally often.
        on_timeout: called, from another thread, when an epoch takes longer than `job.epoch_timeout`.
        ranks: this worker's rank among those of the trial.

    Raises:
        TrialOutOfMemory: the trial needs more memory than there is; no other attempt will succeed.
        Exception: what nobody has expected; `again` says whether another attempt may succeed.
    """
    host = socket.gethostname()
    tags = {
        "host": host,
        "process": str(os.getpid()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": str(torch.get_num_threads()),
    }
    epoch = 0

    def out_of_time() -> None:
        assert on_timeout is not None
        on_timeout(EpochTimeout(f"epoch {epoch + 1} took longer than {job.epoch_timeout:g} s (search.epoch_timeout)"))

    try:
        data = open_data()
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
                    metrics["worker_memory_gib"] = memory_gib()
                    report(metrics, partial(progress.state.save, trial=job.trial), kept(progress.state.history))
                epoch_ended()
    except TrialOutOfMemory:
        raise
    except (UnreachableError, ShardError) as error:  # every trial would fail so; a resume goes on when it is mended
        if ranks.size > 1:  # the other ranks wait, until Train ends
            raise
        report({"fatal": f"{host}: {error}"}, None, ())
    except (TunerError, DataError) as error:
        cause = "settings" if isinstance(error, TrialFailed) else "other"
        report({"error": f"{type(error).__name__}: {error}", "cause": cause}, None, ())
    except OSError as error:
        if (message := disk_full_message(error)) is None or ranks.size > 1:  # the other ranks wait, until Train ends
            raise
        report({"fatal": f"{host}: {message}"}, None, ())


def again(error: Exception) -> bool:
    """Whether another attempt may succeed after an error that `run` has raised.

    A trial is the same in every attempt, so an error of the code that trains it comes again. One of a GPU, of files and
    connections, or of Ray need not.
    """
    if isinstance(error, OSError | EOFError | UnreachableError) or type(error).__module__.startswith("ray."):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).upper() for part in GPU_ERRORS)


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
