"""The random number generators of a checkpoint: those of the trial's own device, with any number of GPUs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tuner.training.state import random_state, set_random_state

CPU = torch.device("cpu")


class Gpus:
    """The generators of a machine with some GPUs, in place of those of torch.cuda; GPU 0 is the current one."""

    def __init__(self, count: int, patch: pytest.MonkeyPatch) -> None:
        self.states = [torch.full((16,), 100 + index, dtype=torch.uint8) for index in range(count)]
        patch.setattr(torch.cuda, "is_available", lambda: count > 0)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: self.states[device.index or 0])
        patch.setattr(torch.cuda, "set_rng_state", self.set)

    def set(self, state: Tensor, device: torch.device) -> None:
        self.states[device.index or 0] = state


def saved(*cuda: int) -> dict[str, Any]:
    """What a checkpoint holds, with a generator for each of these numbers."""
    return {
        "rng": torch.Generator().manual_seed(5).get_state(),
        "rng_cuda": [torch.full((16,), number, dtype=torch.uint8) for number in cuda],
    }


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:2"])
def test_only_the_generators_of_the_trials_device_are_saved(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(3, monkeypatch)
    state = random_state(torch.device(device))
    assert torch.equal(state["rng"], torch.get_rng_state())
    assert [one[0] for one in state["rng_cuda"]] == [gpus.states[torch.device(device).index or 0][0]]
    assert random_state(CPU)["rng_cuda"] == []


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_generator_is_restored_on_any_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(2, monkeypatch)
    set_random_state(saved(7), torch.device(device))
    changed = torch.device(device).index
    assert gpus.states[changed][0] == 7 and gpus.states[1 - changed][0] == 100 + (1 - changed)


@pytest.mark.parametrize(("gpus_now", "device", "expected"), [(4, "cuda:3", 13), (2, "cuda:1", 11), (1, "cuda", 10)])
def test_a_checkpoint_with_the_generators_of_four_gpus_is_resumed_where_there_are_fewer(
    gpus_now: int, device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(gpus_now, monkeypatch)
    set_random_state(saved(10, 11, 12, 13), torch.device(device))
    assert gpus.states[torch.device(device).index or 0][0] == expected


def test_a_gpu_that_an_older_checkpoint_does_not_list_gets_the_first_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(4, monkeypatch)
    set_random_state(saved(10, 11), torch.device("cuda:3"))
    assert gpus.states[3][0] == 10


@pytest.mark.parametrize(("device", "cuda"), [("cpu", (7,)), ("cpu", ()), ("cuda", ())])
def test_a_checkpoint_of_the_other_kind_of_device_restores_the_cpus_generator_alone(
    device: str, cuda: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(1, monkeypatch)
    before = torch.get_rng_state()
    try:
        set_random_state(saved(*cuda), torch.device(device))
        assert torch.equal(torch.get_rng_state(), saved()["rng"])
    finally:
        torch.set_rng_state(before)
    assert gpus.states[0][0] == 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_draws_again_what_it_drew_after_the_state_was_taken() -> None:
    device = torch.device("cuda")
    state = random_state(device)
    drawn = torch.rand(5, device=device)
    set_random_state(state, device)
    assert torch.equal(torch.rand(5, device=device), drawn)
