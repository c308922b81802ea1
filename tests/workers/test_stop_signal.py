"""A trial that is not wanted ends between two batches, on every rank after the same one."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.support.finished import FAST, FinishedSearch
from tuner.training.pipelines import train
from tuner.training.ranks import ALONE, Ranks
from tuner.workers import stop_signal
from tuner.workers.stop_signal import BATCHES_BETWEEN_AGREEMENTS, StopSignal, TrialStopped

CPU = torch.device("cpu")


@pytest.fixture
def unwanted() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()  # ends the thread


def wait_for_thread(stop: StopSignal) -> None:
    assert stop._unwanted.wait(10)


def test_a_trial_ends_before_the_next_batch(finished_search: FinishedSearch, unwanted: threading.Event) -> None:
    stop, batches = StopSignal(unwanted.wait, ALONE, CPU), []

    def before_batch() -> None:
        batches.append(len(batches))
        if len(batches) == 3:
            unwanted.set()
            wait_for_thread(stop)
        stop()

    data = replace(finished_search.data, before_batch=before_batch)
    with pytest.raises(TrialStopped):
        list(train(finished_search.experiment.trial_config(FAST), data, device=CPU, seed=1))
    assert len(batches) == 3


def test_a_worker_whose_slot_is_gone_stops_too() -> None:
    def gone() -> None:
        raise ConnectionError("the actor died")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda arguments: None)
        stop = StopSignal(gone, ALONE, CPU)
        wait_for_thread(stop)
    with pytest.raises(TrialStopped):
        stop()


def test_several_ranks_stop_after_the_same_batch(monkeypatch: pytest.MonkeyPatch, unwanted: threading.Event) -> None:
    """Rank 0 alone knows that the trial is not wanted; the sum of the ranks' flags is faked."""
    monkeypatch.setattr(Ranks, "sum", lambda self, values: values.fill_(1.0))
    stop = StopSignal(unwanted.wait, Ranks(rank=1, size=2), CPU)
    for _ in range(BATCHES_BETWEEN_AGREEMENTS - 1):
        stop()
    with pytest.raises(stop_signal.TrialStopped):
        stop()
