"""What Tune starts for every suggestion: an actor that runs `trainable`, whose Ray Train run starts the workers.

The actor, Train's controller and each worker are one process each, and Ray adds three small ones. Only the workers
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
from ray.train import BackendConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.util.queue import Queue

from tuner.cluster.resources import Resources
from tuner.storage import searches
from tuner.storage.place import Place
from tuner.workers import slots
from tuner.workers.ray_internals import Trainer, root_cause
from tuner.workers.relay import Relay, forward

if TYPE_CHECKING:
    from tuner.config.experiment import Experiment

# Seconds that a worker waits for another worker, which may decode shards for hours. Ray notices at once when one dies.
PATIENCE = 6 * 3600
# Seconds that a trial of elastic workers waits for the number of workers that Ray has announced, before it asks again:
# a node may have died, and Ray may not have noticed. Trials of a fixed number of workers wait
# (tuner/workers/connection.py).
ELASTIC_PATIENCE = 30


def trainable(
    experiment: "Experiment",
    directory: Place,
    encoders: Place,
    resources: Resources,
    fingerprint: str,
    turns: int | None = None,
) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs once per trial, in an actor of the trial.

    Args:
        experiment: what is searched.
        directory: the search's; a trial's checkpoints are stored in `trials/<trial_id>` in it.
        encoders: where pretrained encoders are kept, for all searches.
        resources: of the trial's workers.
        fingerprint: of the data that the search began with.
        turns: the number of slots, where workers take turns on the CPUs of one machine (tuner/workers/slots.py); None:
            Ray alone assigns the resources.
    """
    # An experiment refers to models, hence to torch, which takes seconds to import and hundreds of megabytes. Pickled,
    # it passes through the trial's actor and Train's controller, which need neither.
    sealed = pickle.dumps(
        {
            "experiment": experiment,
            "trials": directory / searches.TRIALS,
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
            os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(ELASTIC_PATIENCE)
        reports = Queue(1, actor_options={"num_cpus": 0})
        trainer = Trainer(
            work,
            train_loop_config={"suggestion": config, "sealed": sealed},
            backend_config=backend_config,
            scaling_config=scaling_config,
            run_config=RunConfig(
                name=config["trial_id"],
                **ray_storage(directory / searches.TRIALS),
                callbacks=[Relay(reports)],
                # Workers on a node that the cloud takes back have not failed, however often that happens.
                failure_config=FailureConfig(max_failures=failures, max_preemption_failures=-1),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        search, _, number = config["trial_id"].rpartition("-")
        starting = slots.starting(search, int(number)) if turns is not None else nullcontext()
        try:
            with starting:
                forward(trainer.fit, reports, ray.tune.report)
        except WorkerGroupError as error:  # reported, not raised: after an exception, Tune would start the trial again
            ray.tune.report({"error": _reason(error, failures + 1)})

    return trial


def scaling(resources: Resources, share: float = 1.0) -> ScalingConfig:
    """A trial's workers as Train requests them.

    Args:
        resources: of the trial's workers.
        share: the part of its CPUs that each worker requests.
    """
    requested = {"CPU": resources.cpu * share}
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
    return TorchConfig(backend="nccl" if resources.gpu >= 1 else "gloo", timeout_s=PATIENCE)


def ray_storage(folder: Place) -> dict[str, Any]:
    """A folder or URL for Ray's files, as the RunConfig of Tune and that of Train take it.

    Ray reaches an object store through this project's driver, so that credentials and endpoint are configured once.
    """
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


def work(config: dict[str, Any]) -> None:
    """Train's loop, in a worker."""
    from tuner.workers import worker  # imports torch

    worker.work(**config)


def _reason(error: WorkerGroupError, attempts: int) -> str:
    """Why a trial failed whose workers died or raised in every attempt, in a sentence."""
    (failure, *_) = error.worker_failures.values()
    cause = root_cause(failure)
    if isinstance(cause, OutOfMemoryError):
        why = "Ray killed its worker because the machine ran out of memory"
    elif isinstance(cause, RayActorError):
        why = "its worker crashed or was killed, as the kernel does when memory runs out (`dmesg` shows it)"
    else:
        why = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return f"{why}; {attempts} attempts (search.failures.per_trial)"


def epochs_of(result: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The epochs in a report, with their metrics: one epoch, or after a resume all epochs so far."""
    if "history" in result:
        return [(metrics["epoch"], metrics) for metrics in result["history"]]
    return [(result["epoch"], result)]
