"""What a trial's workers do: Train starts them, most often one, and each runs `work` in the process that holds the GPU.

They train by the generator of tuner/training/pipelines.py, and the first of them reports, epoch by epoch. Failures are
of two kinds.
What a second attempt may cure (a worker or an actor that died, an epoch that hangs) is an exception, and Ray tries
again from the last checkpoint. What it cannot cure (a loss that diverged, too little memory) is a report with the key
`error`, and the trial ends. What no trial is to blame for and all would meet (a damaged shard, a full disk) is a report
with the key `obstacle`: the search ends, and a resume goes on with its trials.
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
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.context import get_train_context

from data.errors import DataError
from tuner.cluster.resources import Resources
from tuner.config.experiment import Experiment
from tuner.errors import CheckpointDamaged, EpochTimeout, TrialOutOfMemory, TunerError, disk_full_message
from tuner.storage.place import Place
from tuner.training import checkpoint
from tuner.training.config import Trial
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.dataset import DataConfig, open_dataset
from tuner.training.pipelines import train
from tuner.training.ranks import ALONE, Ranks
from tuner.workers import slots
from tuner.workers.reports import Reporter, Save, kept
from tuner.workers.watchdog import epoch_limit

# How PyTorch's CPU allocator says that there is no more memory, in a RuntimeError.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")

# Reports (metrics, what saves the state, names of the checkpoints to keep).
Report = Callable[[dict[str, Any], Save | None, Sequence[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, as its workers need it."""

    trial_id: str
    trial: Trial
    data: DataConfig
    fingerprint: str  # of the data; with any other, the trial does not train
    seed: int
    resources: Resources
    encoder_store: EncoderStore | None = None  # of pretrained encoders
    turns: int | None = None  # slots of the machine whose workers take turns; None: a worker has a slot of its own
    epoch_timeout: float | None = None  # seconds that an epoch may take; None: as long as it likes

    @classmethod
    def of(
        cls,
        *,
        experiment: Experiment,
        encoders: Place,
        resources: Resources,
        fingerprint: str,
        turns: int | None,
        trial_id: str,
        number: int,
        values: Mapping[str, Any],
    ) -> "Job":
        """The trial of this number of a search, with these values."""
        trial = experiment.trial_config(values)
        return cls(
            trial_id=trial_id,
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
        sealed: what else makes a Job of it, pickled.
    """
    job = Job.of(**suggestion, **pickle.loads(sealed))
    device = ray.train.torch.get_device() if job.resources.gpu else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, int(job.resources.cpu)))
    ranks = Ranks.of_this_process()
    reporter = Reporter(stores=ranks.rank == 0)
    with _turn(job):
        run(
            job,
            device=device,
            checkpoints=reporter.checkpoints(ranks),
            report=reporter,
            hung=_fail_worker,
            ranks=ranks,
        )
    reporter.wait()


@contextmanager
def _turn(job: Job) -> Iterator[None]:
    """Wait for a slot, with everything at hand that takes time and no CPUs to speak of."""
    # 0.9 s, many times that on a busy machine; the first optimizer of a process imports it, within its first epoch.
    import_module("torch._dynamo")
    if job.turns is None:
        yield
        return
    with suppress(TunerError, DataError):
        # Decoded, or found sound; what is wrong with it is told by `run`.
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
    hung: Callable[[Exception], None] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train one trial and report every epoch.

    A report holds the metrics of an epoch, the place, and the `tags` of the trial's run. The first one after a resume
    has the `history` of the checkpoint's epochs: a driver that died may not have heard of the last ones. A `note` says
    what a person should know of. All ranks report equally often, and the first one's reports count.

    Args:
        job: the trial.
        device: that it trains on.
        checkpoints: of this trial, newest first; the first whole one is gone on from.
        report: Ray's, or a test's.
        hung: told, from another thread, of an epoch that takes longer than `job.epoch_timeout`.
        ranks: this worker's place among the trial's.
    """
    host = socket.gethostname()
    tags = {"host": host, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    epoch = 0

    def out_of_time() -> None:
        assert hung is not None
        hung(EpochTimeout(f"epoch {epoch + 1} took longer than {job.epoch_timeout:g} s (search.epoch_timeout)"))

    try:
        data = ranks.together(partial(open_dataset, job.data, fingerprint=job.fingerprint))
    except DataError as error:
        report({"obstacle": f"{host}: {error}"}, None, ())
        return
    try:
        with _memory(), epoch_limit(job.epoch_timeout, out_of_time) as epoch_ended:
            resume_from, damage = _newest_whole(checkpoints, ranks)
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
                    goes_on = f"goes on from the checkpoint of epoch {epoch}" if progress.repeated else "starts again"
                    metrics["note"] = tags["note"] = f"{damage}; {goes_on}"
                    damage = ""
                metrics["tags"] = {**tags, **progress.tags}
                if progress.repeated:
                    report(metrics | {"history": list(progress.state.history)}, None, ())  # the state lives on
                else:
                    report(metrics, partial(progress.state.save, trial=job.trial), kept(progress.state.history))
                epoch_ended()
    except (TunerError, DataError) as error:
        if ranks.size > 1 and isinstance(error, TrialOutOfMemory):
            raise  # the other ranks know nothing of it, and wait
        report({"error": f"{type(error).__name__}: {error}"}, None, ())
    except OSError as error:
        if (told := disk_full_message(error)) is None or ranks.size > 1:  # here too the others wait
            raise
        report({"obstacle": f"{host}: {told}"}, None, ())


def _newest_whole(checkpoints: Iterable[Path], ranks: Ranks) -> tuple[Path | None, str]:
    """The first checkpoint that is whole on every rank, and what is wrong with those before it."""
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
    """Tell want of memory, whoever finds it, as TrialOutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(text in str(error) for text in CPU_OUT_OF_MEMORY):
            raise
        raise TrialOutOfMemory(
            f"not enough memory on {socket.gethostname()} ({str(error).splitlines()[0]}); a smaller batch or a "
            "smaller model needs less"
        ) from error


def _fail_worker(error: Exception) -> None:
    """Have Train end this process and try again, as when the training itself raises: it may hang and raise nothing."""
    failures = get_train_context().execution_context.training_thread_runner.get_exception_queue()
    failures.put(UserExceptionWithTraceback(error, f"{type(error).__name__}: {error}"))
