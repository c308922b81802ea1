"""What Ray calls: the worker side of a search.

Tune starts `Trial` for every suggestion; it runs a Ray Train TorchTrainer, whose workers, most often one, run `work`:
the generator of tuner/train.py, reported epoch by epoch by the first of them. Failures are of two kinds. What a second
attempt may cure (a worker or an actor that died) is an exception, and Ray tries again from the last checkpoint. What it
cannot cure (a loss that diverged, a damaged shard) is a report with the key `error`, and the trial ends.
"""

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from data.errors import DataError
from tuner import slots
from tuner.config import Experiment
from tuner.dataset import DataConfig, open_dataset
from tuner.encoders import Shelf
from tuner.errors import TunerError
from tuner.paths import Place
from tuner.ranks import ALONE, Ranks
from tuner.resources import Resources
from tuner.train import train
from tuner.trial_config import Trial

# Seconds that a worker waits for another one, which may decode shards for hours. One that dies, Ray notices at once.
PATIENCE = 6 * 3600

Save = Callable[[Path], None]  # writes the trial's state into the directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, as it travels from the driver to its worker."""

    trial_id: str
    trial: Trial
    data: DataConfig
    seed: int
    resources: Resources
    shelf: Shelf | None = None  # of pretrained encoders
    turns: int | None = None  # slots of the machine whose workers take turns; None: a worker has a slot of its own


def trainable(
    experiment: Experiment, directory: Place, encoders: Place, resources: Resources, turns: int | None = None
) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs once per trial, in an actor of its own.

    Args:
        experiment: what is searched.
        directory: the search's; the trial's checkpoints go to `trials/<trial_id>` in it.
        encoders: where pretrained encoders are kept, for all searches.
        resources: of the trial's workers.
        turns: slots of the one machine whose workers take turns (tuner/slots.py); None: Ray alone hands them out.
    """

    def trial(config: dict[str, Any]) -> None:
        settings = experiment.trial_config(config["values"])
        job = Job(
            trial_id=config["trial_id"],
            trial=settings,
            data=experiment.data,
            seed=settings.seed(config["number"]),
            resources=resources,
            shelf=Shelf(directory=encoders, trial_id=config["trial_id"]),
            turns=turns,
        )
        TorchTrainer(
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
                checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="gap"),  # and the last
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        ).fit()

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
    with _latest_checkpoint() as resume_from, _turn(job):
        run(job, device=device, resume_from=resume_from, report=partial(_report, ranks), ranks=ranks)


@contextmanager
def _turn(job: Job) -> Iterator[None]:
    """Wait for a slot, with everything at hand that takes time and no CPUs to speak of."""
    if job.turns is None:
        yield
        return
    import_module("torch._dynamo")  # 0.9 s; the first optimizer of a process imports it
    with suppress(TunerError, DataError):
        open_dataset(job.data)  # decoded, or found sound; what is wrong with it is told by `run`
    with slots.turn(job.trial_id.rpartition("-")[0], job.turns):
        yield


def run(
    job: Job,
    *,
    device: torch.device,
    resume_from: Path | None,
    report: Callable[[dict[str, Any], Save | None], None],
    ranks: Ranks = ALONE,
) -> None:
    """Train one trial and report every epoch; `report(metrics, save)` is Ray's, or a test's.

    A report holds the metrics of an epoch, the place, and the `tags` of the trial's run. The first one after a resume
    has the `history` of the checkpoint's epochs: a driver that died may not have heard of the last ones. All ranks
    report equally often, and the first one's reports count.
    """
    place = {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    try:
        data = ranks.together(partial(open_dataset, job.data))
        for progress in train(
            job.trial, data, device=device, seed=job.seed, resume_from=resume_from, shelf=job.shelf, ranks=ranks
        ):
            metrics = {**progress.metrics, "epochs": job.trial.epochs, "tags": {**place, **progress.tags}}
            if progress.repeated:
                report(metrics | {"history": list(progress.state.history)}, None)  # the state lives on
            else:
                report(metrics, partial(progress.state.save, trial=job.trial))
    except (TunerError, DataError) as error:
        report({"error": f"{type(error).__name__}: {error}"}, None)


def epochs_of(result: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The epochs that a report tells of, with their metrics: its own, or after a resume all so far."""
    if "history" in result:
        return [(metrics["epoch"], metrics) for metrics in result["history"]]
    return [(result["epoch"], result)]


def checkpoint_name(epoch: int) -> str:
    """The directory of an epoch's checkpoint, below `trials/<trial_id>`."""
    return f"epoch-{epoch:04d}"


def _report(ranks: Ranks, metrics: dict[str, Any], save: Save | None) -> None:
    """Hand an epoch to Train; its checkpoint is uploaded while the next epoch trains."""
    if save is None or ranks.rank:  # Train waits for the reports of all ranks, and reads that of the first
        ray.train.report(metrics)
        return
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    save(directory)
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(str(directory)),
        checkpoint_dir_name=checkpoint_name(metrics["epoch"]),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


@contextmanager
def _latest_checkpoint() -> Iterator[Path | None]:
    """The directory of this trial's last checkpoint, if a run before this one left any."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
    else:
        with checkpoint.as_directory() as directory:
            yield Path(directory)
