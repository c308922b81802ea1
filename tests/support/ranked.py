"""Processes that form a real torch.distributed group (gloo), and the tasks that the tests run in them.

A task is a function of this file: its first argument is the Ranks of its process, the others come from the test, and
the test receives what it returns.
"""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import models
from data.errors import NoShardsError
from models import FeatureStatistics, Sizes
from models.layers import BatchNorm
from tuner.errors import TrialDiverged
from tuner.training.config import TrialConfig
from tuner.training.data_config import DataConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.evaluation import evaluate
from tuner.training.ranks import Ranks
from tuner.training.supervised import train
from tuner.workers.trial import Job, run

CPU = torch.device("cpu")
TIMES = ("seconds", "videos_per_second")
LIMIT = 600  # seconds that a test waits for a task, including the start of its processes


class Group:
    """Processes that wait for tasks; each task runs in a new process group of as many of them as it asks for."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.processes, self.tasks = [], [], 0
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a task on `size` ranks; returns each rank's result, or fails with the traceback of one."""
        self.tasks += 1
        meeting = f"file://{self.folder.name}/{self.tasks}"
        for rank, pipe in enumerate(self.pipes[:size]):
            pipe.send((task, meeting, rank, size, arguments))
        answers = []
        for rank, pipe in enumerate(self.pipes[:size]):
            assert pipe.poll(LIMIT), f"rank {rank} of {size} did not finish its task"
            answers.append(pipe.recv())
        for error, _ in answers:
            assert error is None, error
        return [result for _, result in answers]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        task, meeting, rank, size, arguments = pipe.recv()
        if distributed.is_initialized():
            # Only now, when every rank has answered: a rank that leaves early would do so while others still connect.
            distributed.destroy_process_group()
        try:
            distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
            pipe.send((None, task(Ranks.of_this_process(), *arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))


def train_trial(
    ranks: Ranks, config: TrialConfig, data: Any, resume_from: Path | None = None, save: Path | None = None
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Train; returns the metrics of each epoch and the final weights. Rank 0 saves epoch 1 to the folder `save`."""
    dataset = open_dataset(data, ranks=ranks)
    torch.manual_seed(99 + ranks.rank)  # the generators of two processes differ
    epochs = []
    for progress in train(config, dataset, device=CPU, seed=1, resume_from=resume_from, ranks=ranks):
        epochs.append({key: value for key, value in progress.metrics.items() if key not in TIMES})
        if save is not None and progress.epoch == 1 and ranks.rank == 0:
            progress.state.save(save, config)
    return epochs, {name: value.clone() for name, value in progress.state.model.state_dict().items()}


def shared(ranks: Ranks, data: DataConfig) -> dict[str, Any]:
    """Open the data together; returns what this rank knows of the training videos, and the rows of two epochs."""
    dataset = open_dataset(data, ranks=ranks)
    batches = dataset.train_batches(32, 1, CPU, ranks)
    epochs = []
    for epoch in range(2):
        rows = [batch.rows for batch in batches.epoch(epoch)]
        features = [batch.inputs[0] for batch in batches.epoch(epoch)]
        epochs.append((torch.cat(rows), features))
    counts = dataset.statistics.label_counts_C
    return {
        "fingerprint": dataset.fingerprint,
        "ids": np.asarray(dataset.ids),
        "counts": counts,
        "mean": dataset.statistics.mean_D,
        "bytes": dataset.train.features_ND.nbytes,
        "epochs": epochs,
        "scored": [batch.rows for batch in dataset.validate_batches(8, CPU, ranks).epoch(0)],
    }


def diverge(ranks: Ranks, config: TrialConfig, data: Any, bad: int) -> str:
    """Train on data in which video `bad`, which only one rank reads, is not finite; returns the error message."""
    dataset = open_dataset(data)
    features_ND = dataset.train.features_ND.copy()
    features_ND[bad] = float("nan")
    steps = train(config, _with_features(dataset, features_ND), device=CPU, seed=1, ranks=ranks)
    try:
        next(steps)
    except TrialDiverged as error:
        return str(error)
    raise AssertionError("training did not fail")


def _with_features(dataset: Dataset, features_ND: Any) -> Any:
    """Return the data set with other features of the training videos and the same statistics."""

    class Changed:
        def __getattr__(self, name: str) -> Any:
            return getattr(dataset, name)

        def train_batches(self, *arguments: Any) -> Any:
            batches = dataset.train_batches(*arguments)
            batches._features_ND = torch.from_numpy(features_ND)
            return batches

    return Changed()


def score(ranks: Ranks, model: nn.Module, data: Any) -> dict[str, float]:
    """Evaluate a model on the validation split, shared among the ranks."""
    dataset = open_dataset(data)
    return evaluate(model, dataset.validate_batches(8, CPU, ranks), "fp32", ranks)


def normalise(
    ranks: Ranks, x: Tensor, grad: Tensor, rows: list[int], real: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Run a BatchNorm over all ranks, where rank r gets the next rows[r] rows of x, of `grad` and of the mask `real`.

    Returns:
        The output and the gradient of the input, both for this rank's rows; the state with the summed gradients.
    """
    own = x.split(rows)[ranks.rank].requires_grad_()
    norm = BatchNorm(x.shape[1], momentum=0.3)
    norm.over_ranks = True
    out = norm(own, None if real is None else real.split(rows)[ranks.rank])
    out.backward(grad.split(rows)[ranks.rank])
    assert own.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    gradients = {"weight.grad": ranks.sum(norm.weight.grad), "bias.grad": ranks.sum(norm.bias.grad)}
    return out.detach(), own.grad, {**norm.state_dict(), **gradients}


def buffers_after_steps(ranks: Ranks, config: Any, steps: int) -> tuple[bool, dict[str, Tensor]]:
    """Run forward and backward on other videos on each rank.

    Returns:
        Whether a forward sends the buffers of rank 0 to the other ranks; the buffers of this rank's model.
    """
    sizes = Sizes(features={"mean_rgb": 10, "mean_audio": 6}, num_classes=4)
    torch.manual_seed(1)
    model = models.build(config, sizes, FeatureStatistics.empty(sizes)).train()
    parallel = ranks.parallel(model)
    assert isinstance(parallel, DistributedDataParallel)
    torch.manual_seed(2 + ranks.rank)
    for _ in range(steps):
        parallel(torch.randn(8, sizes.width)).sum().backward()
    return parallel.will_sync_module_buffers(), dict(model.named_buffers())


def work(ranks: Ranks, job: Job, data: DataConfig, broken: int | None) -> list[tuple[dict[str, Any], bool]]:
    """Run a worker's job; returns each report and whether it came with a checkpoint. Rank `broken` finds no shards."""
    told: list[tuple[dict[str, Any], bool]] = []

    def open_data() -> Dataset:
        if ranks.rank == broken:
            raise NoShardsError("no shard matches on this node")
        return open_dataset(data)

    run(
        job,
        open_data=partial(ranks.together, open_data),
        device=CPU,
        checkpoints=(),
        report=lambda metrics, save, kept: told.append((metrics, save is not None)),
        ranks=ranks,
    )
    return told


def draw(ranks: Ranks, epoch: int) -> list[float]:
    """Seed the generators for an epoch; returns four numbers drawn from them."""
    torch.manual_seed(5)
    ranks.seed(1, epoch)
    return torch.rand(4).tolist()


def together(ranks: Ranks, failing: tuple[int, ...]) -> str:
    """Run an action through `Ranks.together` that fails on some ranks; returns its result or its error, as text."""

    def action(rank: int) -> int:
        if rank in failing:
            raise NoShardsError(f"rank {rank}")
        return rank

    try:
        return f"did {ranks.together(partial(action, ranks.rank))}"
    except NoShardsError as error:
        return str(error)
