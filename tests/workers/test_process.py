"""A process that has trained something is put back into the state of a new one."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support.finished import FAST, FinishedSearch
from tuner.training.pipelines import train
from tuner.workers.process import begin_trial, memory_gib

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    begin_trial(CPU, threads)


def state() -> list[object]:
    """Everything of a process that a trial may have changed."""
    return [
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_cache_enabled(),
        torch.initial_seed(),
        torch.rand(3).tolist(),
        random.random(),
        np.random.rand(),
    ]


def test_whatever_a_trial_has_changed_is_put_back() -> None:
    begin_trial(CPU, 2)
    new = state()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(7)
    begin_trial(CPU, 2)
    assert state() == new


def test_a_trial_has_the_same_numbers_after_others(finished_search: FinishedSearch) -> None:
    experiment, data = finished_search.experiment, finished_search.data

    def numbers(**changes: object) -> list[dict[str, float]]:
        begin_trial(CPU, 1)
        trial = experiment.trial_config({**FAST, **changes})
        times = ("seconds", "videos_per_second")
        found = [progress.metrics for progress in train(trial, data, device=CPU, seed=3)]
        return [{key: value for key, value in metrics.items() if key not in times} for metrics in found]

    first = numbers()
    numbers(**{"model.dropout": 0.7})
    assert numbers() == first


def test_memory_is_that_of_this_process() -> None:
    before = memory_gib()
    held = np.ones(2**26)  # 0.5 GiB
    assert 0.4 < memory_gib() - before < 0.7 and held[0] == 1
