"""The Ray Train run of a slot: it starts the workers, starts them again when one is lost, and tells the slot why.

Nothing here imports torch before it runs in a worker: the slot's actor and Train's controller load this file.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import (
    BackendConfig,
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)

from tuner.cluster.resources import Resources
from tuner.errors import first_line, in_one_line
from tuner.imports import without_garbage_collection
from tuner.storage.place import Place
from tuner.workers.ray_internals import Trainer, root_cause

# Seconds that a worker waits for another worker, which may decode shards for hours. Ray notices at once when one dies.
RANKS_PATIENCE = 6 * 3600
# Environment variables of the workers, where the driver does not have them. They must be there when a process starts.
WORKER_VARIABLES = {
    # The threads of an operation wait for each other after it. By default they spin meanwhile, and where another
    # program has one of the cores, an epoch takes up to a hundred times as long (LOG.md, 2026-11-27).
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives blocks above 32 MiB back to the system, which clears them each time they are requested again:
    # frame-level models on a CPU spend up to half of a step on this. `begin_trial` gives them back, once a trial.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
# Seconds that elastic workers wait for the number of workers that Ray has announced, before Train asks again: a node
# may have died, and Ray may not have noticed. Workers of a fixed number wait for their resources however long it takes.
ELASTIC_PATIENCE = 30


def trainer(slot: Any, sealed: bytes, resources: Resources, folder: Place, variables: Mapping[str, str]) -> Trainer:
    """A run of Train that lasts as long as the workers are wanted; its `fit` raises when the controller is lost.

    Args:
        slot: the actor of the slot.
        sealed: what the workers need, pickled.
        resources: of the workers.
        folder: for Train's own files.
        variables: of the workers' environment.
    """
    scaling_config = scaling(resources)
    if scaling_config.elasticity_enabled:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(ELASTIC_PATIENCE)
    return Trainer(
        work,
        train_loop_config={"slot": slot, "sealed": sealed},
        backend_config=process_group(resources),
        scaling_config=scaling_config,
        run_config=RunConfig(
            name=f"slot-{uuid.uuid4().hex}",  # Train resumes a run of the same name
            **ray_storage(folder),
            callbacks=[Losses(slot)],
            # The slot counts the failures of each trial.
            failure_config=FailureConfig(max_failures=-1, max_preemption_failures=-1),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": dict(variables)},
        ),
    )


class Losses(UserCallback):
    """Tells the slot of workers that are lost; runs in Train's controller."""

    def __init__(self, slot: Any) -> None:
        """Tell the actor `slot`."""
        self._slot = slot

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Workers have raised an exception or died. One that was on a node that the cloud takes back has not failed."""
        causes = [root_cause(error) for error in worker_exceptions.values()]
        if any(isinstance(cause, RayActorError) and cause.preempted for cause in causes):
            ray.get(self._slot.excuse.remote())
        ray.get(self._slot.workers_lost.remote(_reason(causes[0])))


def controller_lost(error: Exception) -> str:
    """Why all workers were lost, in a sentence, of the error that Train raises when its controller fails."""
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return f"Ray Train's controller was lost ({first_line(cause)})"


def _reason(cause: BaseException) -> str:
    """Why a worker was lost that has not said so itself."""
    if isinstance(cause, OutOfMemoryError):
        return "Ray killed its worker because the machine ran out of memory"
    if isinstance(cause, RayActorError):
        return "its worker crashed or was killed, as the kernel does when memory runs out (`dmesg` shows it)"
    return in_one_line(cause)


def work(config: dict[str, Any]) -> None:
    """Train's loop, in a worker."""
    with without_garbage_collection():
        from tuner.workers import worker  # imports torch

    worker.work(**config)


def scaling(resources: Resources) -> ScalingConfig:
    """The workers of a slot as Train requests them."""
    requested = {"CPU": resources.cpu}
    if resources.gpu:
        requested["GPU"] = resources.gpu
    fixed = resources.min_workers == resources.max_workers
    return ScalingConfig(
        num_workers=resources.max_workers if fixed else (resources.min_workers, resources.max_workers),
        use_gpu=resources.gpu > 0,
        resources_per_worker=requested,
    )


def process_group(resources: Resources) -> BackendConfig:
    """How the workers of a trial communicate; a single one needs no process group, which takes a second to start."""
    if resources.max_workers == 1:
        return BackendConfig()
    from ray.train.torch import TorchConfig  # imports torch

    # NCCL refuses two ranks on one GPU, and workers that hold a share of a GPU may be on one.
    return TorchConfig(backend="nccl" if resources.gpu >= 1 else "gloo", timeout_s=RANKS_PATIENCE)


def ray_storage(folder: Place) -> dict[str, Any]:
    """A folder or URL for Ray's files, as the RunConfig of Tune and that of Train take it.

    Ray reaches an object store through this project's driver, so that credentials and endpoint are configured once.
    """
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}
