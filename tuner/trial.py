"""What Ray calls: the worker side of a search.

Tune starts `Trial` for every suggestion; it runs a Ray Train TorchTrainer, whose workers, most often one, run `work`:
the generator of tuner/train.py, reported epoch by epoch by the first of them. Failures are of two kinds. What a second
attempt may cure (a worker or an actor that died, an epoch that hangs) is an exception, and Ray tries again from the
last checkpoint. What it cannot cure (a loss that diverged, too little memory) is a report with the key `error`, and the
trial ends. What no trial is to blame for and all would meet (a damaged shard, a full disk) is a report with the key
`obstacle`: the search ends, and a resume goes on with its trials.
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback

from data.errors import DataError
from tuner import checkpoint, slots
from tuner.config import Experiment
from tuner.dataset import DataConfig, open_dataset
from tuner.encoders import Shelf
from tuner.errors import CheckpointDamaged, EpochTimeout, TrialOutOfMemory, TunerError, no_room
from tuner.paths import Place
from tuner.ranks import ALONE, Ranks
from tuner.reporter import Reporter, Save, kept
from tuner.resources import Resources
from tuner.train import train
from tuner.trial_config import Trial
from tuner.watchdog import epoch_limit

# Seconds that a worker waits for another one, which may decode shards for hours. One that dies, Ray notices at once.
PATIENCE = 6 * 3600
# How PyTorch's CPU allocator says that there is no more memory, in a RuntimeError.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")

# Reports (metrics, what saves the state, names of the checkpoints to keep).
Report = Callable[[dict[str, Any], Save | None, Sequence[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, as it travels from the driver to its worker."""

    trial_id: str
    trial: Trial
    data: DataConfig
    fingerprint: str  # of the data; with any other, the trial does not train
    seed: int
    resources: Resources
    shelf: Shelf | None = None  # of pretrained encoders
    turns: int | None = None  # slots of the machine whose workers take turns; None: a worker has a slot of its own
    epoch_timeout: float | None = None  # seconds that an epoch may take; None: as long as it likes


def trainable(
    experiment: Experiment,
    directory: Place,
    encoders: Place,
    resources: Resources,
    fingerprint: str,
    turns: int | None = None,
) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs once per trial, in an actor of its own.

    Args:
        experiment: what is searched.
        directory: the search's; the trial's checkpoints go to `trials/<trial_id>` in it.
        encoders: where pretrained encoders are kept, for all searches.
        resources: of the trial's workers.
        fingerprint: of the data that the search began with.
        turns: slots of the one machine whose workers take turns (tuner/slots.py); None: Ray alone hands them out.
    """

    def trial(config: dict[str, Any]) -> None:
        settings = experiment.trial_config(config["values"])
        job = Job(
            trial_id=config["trial_id"],
            trial=settings,
            data=experiment.data,
            fingerprint=fingerprint,
            seed=settings.seed(config["number"]),
            resources=resources,
            shelf=Shelf(directory=encoders, trial_id=config["trial_id"]),
            turns=turns,
            epoch_timeout=experiment.search.epoch_timeout,
        )
        trainer = TorchTrainer(
            work,
            train_loop_config={"job": job},
            torch_config=process_group(resources),
            scaling_config=scaling(resources, slots.SHARE if turns is not None else 1.0),
            run_config=RunConfig(
                # The same name in the same place: a run that died goes on from its last checkpoint.
                name=job.trial_id,
                **ray_storage(directory / "trials"),
                callbacks=[TuneReportCallback()],
                # Workers that go with a node which the cloud takes back have not failed, however often that happens.
                failure_config=FailureConfig(
                    max_failures=experiment.search.failures.per_trial, max_preemption_failures=-1
                ),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:  # told as an end: after an exception, Tune would have it all tried again
            ray.tune.report({"error": _reason(error, experiment.search.failures.per_trial + 1)})

    return trial


def scaling(resources: Resources, share: float = 1.0) -> ScalingConfig:
    """How many workers Train starts, and what it asks of Ray for each: this share of its CPUs, and its GPUs."""
    asked = {"CPU": resources.cpu * share}
    if resources.gpu:
        asked["GPU"] = resources.gpu
    fewest, most = resources.fewest_workers, resources.most_workers
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=resources.gpu > 0,
        resources_per_worker=asked,
    )


def process_group(resources: Resources) -> TorchConfig:
    """How the workers of a trial find each other."""
    if resources.most_workers == 1:
        return LoneWorker()
    # NCCL refuses two ranks on one GPU, which may be where those lie that have a share of one.
    return TorchConfig(backend="nccl" if resources.gpu >= 1 else "gloo", timeout_s=PATIENCE)


def ray_storage(folder: Place) -> dict[str, Any]:
    """Where Ray keeps what it keeps, as both its RunConfigs take it.

    A store is reached by the driver that we use, so that credentials and endpoint are configured once.
    """
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


class LoneWorker(TorchConfig):
    """A trial of one worker needs no process group: starting one costs a second per trial and gives nothing."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that sets nothing up."""
        return Backend


def work(config: dict[str, Any]) -> None:
    """Train's loop: runs in the worker process that holds the GPU."""
    job: Job = config["job"]
    device = ray.train.torch.get_device() if job.resources.gpu else torch.device("cpu")
    if device.type == "cpu":
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
    with slots.turn(job.trial_id.rpartition("-")[0], job.turns):
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
                job.trial, data, device=device, seed=job.seed, resume_from=resume_from, shelf=job.shelf, ranks=ranks
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
        if (told := no_room(error)) is None or ranks.size > 1:  # here too the others wait
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


def _reason(error: WorkerGroupError, attempts: int) -> str:
    """Why a trial failed whose workers died or raised that often, in a sentence."""
    (cause, *_) = error.worker_failures.values()
    if isinstance(cause, UserExceptionWithTraceback):
        cause = cause._base_exc
    if isinstance(cause, WorkerHealthCheckFailedError):
        cause = cause.health_check_failure
    if isinstance(cause, OutOfMemoryError):
        why = "Ray killed its worker because the machine ran out of memory"
    elif isinstance(cause, RayActorError):
        why = "its worker was killed, as the kernel does where memory runs out (`dmesg` tells), or crashed"
    else:
        why = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return f"{why}; {attempts} attempts (search.failures.per_trial)"


def epochs_of(result: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The epochs that a report tells of, with their metrics: its own, or after a resume all so far."""
    if "history" in result:
        return [(metrics["epoch"], metrics) for metrics in result["history"]]
    return [(result["epoch"], result)]
