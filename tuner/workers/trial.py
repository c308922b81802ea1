"""What Tune starts for every suggestion: an actor that runs `trainable`, whose Ray Train run starts the workers.

The actor, Train's controller and the workers are a process each, beside three small ones of Ray's. Only the workers
(tuner/workers/worker.py) import torch, so this module must not.
"""

import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.tune
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import BackendConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.queue import Queue

from tuner.cluster.resources import Resources
from tuner.storage.place import Place
from tuner.workers import slots
from tuner.workers.relay import Relay, tell

if TYPE_CHECKING:
    from tuner.config.experiment import Experiment

# Seconds that a worker waits for another one, which may decode shards for hours. One that dies, Ray notices at once.
PATIENCE = 6 * 3600
# Seconds after which a trial of elastic workers, when those that it was promised do not come, asks anew how many there
# are: a node may die before Ray has noticed that, and its places never come. All others wait
# (tuner/cluster/connection.py).
PROMISED = 30


def trainable(
    experiment: "Experiment",
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
        turns: slots of the one machine whose workers take turns (tuner/workers/slots.py); None: Ray alone hands them
        out.
    """
    # The experiment knows of models, hence of torch, which takes seconds to import and hundreds of megabytes: pickled,
    # it passes through the trial's actor and Train's controller, which need neither.
    sealed = pickle.dumps(
        {
            "experiment": experiment,
            "encoders": encoders,
            "resources": resources,
            "fingerprint": fingerprint,
            "turns": turns,
        }
    )
    backend_config = process_group(resources)
    scaling_config = scaling(resources, slots.SHARE if turns is not None else 1.0)
    failures = experiment.search.failures.per_trial

    def trial(config: dict[str, Any]) -> None:
        if scaling_config.elasticity_enabled:
            os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(PROMISED)
        reports = Queue(1, actor_options={"num_cpus": 0})
        trainer = Trainer(
            work,
            train_loop_config={"suggestion": config, "sealed": sealed},
            backend_config=backend_config,
            scaling_config=scaling_config,
            run_config=RunConfig(
                # The same name in the same place: a run that died goes on from its last checkpoint.
                name=config["trial_id"],
                **ray_storage(directory / "trials"),
                callbacks=[Relay(reports)],
                # Workers that go with a node which the cloud takes back have not failed, however often that happens.
                failure_config=FailureConfig(max_failures=failures, max_preemption_failures=-1),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        search, _, number = config["trial_id"].rpartition("-")
        way = slots.on_its_way(search, int(number)) if turns is not None else nullcontext()
        try:
            with way:
                tell(trainer.fit, reports, ray.tune.report)
        except WorkerGroupError as error:  # told as an end: after an exception, Tune would have it all tried again
            ray.tune.report({"error": _reason(error, failures + 1)})

    return trial


class Trainer(DataParallelTrainer):
    """Train's TorchTrainer without what starts an actor of its own for each trial.

    Ray Data's: our videos come from the cache. The cleaner of placement groups: tuner/cluster/placement.py is one for
    all.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        idle = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [made for made in super()._create_default_callbacks() if not isinstance(made, idle)]


def scaling(resources: Resources, share: float = 1.0) -> ScalingConfig:
    """How many workers Train starts, and what it asks of Ray for each: this share of its CPUs, and its GPUs."""
    asked = {"CPU": resources.cpu * share}
    if resources.gpu:
        asked["GPU"] = resources.gpu
    fewest, most = resources.min_workers, resources.max_workers
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=resources.gpu > 0,
        resources_per_worker=asked,
    )


def process_group(resources: Resources) -> BackendConfig:
    """How the workers of a trial find each other; a lone one needs no process group, which takes a second to start."""
    if resources.max_workers == 1:
        return BackendConfig()
    from ray.train.torch import TorchConfig  # imports torch

    # NCCL refuses two ranks on one GPU, which may be where those lie that have a share of one.
    return TorchConfig(backend="nccl" if resources.gpu >= 1 else "gloo", timeout_s=PATIENCE)


def ray_storage(folder: Place) -> dict[str, Any]:
    """Where Ray keeps what it keeps, as both its RunConfigs take it.

    A store is reached by the driver that we use, so that credentials and endpoint are configured once.
    """
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


def work(config: dict[str, Any]) -> None:
    """Train's loop, in a worker."""
    from tuner.workers import worker  # imports torch

    worker.work(**config)


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
