"""Which features get a copy on a device, and how long it lives; on a device without memory, with told numbers."""

import pickle

import pytest
import torch

from data.residency import Memory, Residency

META = torch.device("meta")
FEATURES = torch.zeros(100, 5)  # 2,000 bytes


class Told:
    """The memory of a device as the test tells it."""

    def __init__(self, free: int, reserved: int) -> None:
        self.free, self.reserved = free, reserved

    def __call__(self, device: torch.device) -> Memory:
        assert device == META
        return Memory(free=self.free, reserved=self.reserved)


def test_nothing_is_resident_before_an_epoch_has_shown_what_training_needs() -> None:
    residency = Residency(memory=Told(free=10_000, reserved=0))
    assert residency.copy_of("a", FEATURES, META) is None and not residency.holds(META)
    residency.trained(META)
    assert residency.copy_of("a", FEATURES, META) is not None and residency.holds(META)


@pytest.mark.parametrize(("free", "fits"), [(2000, True), (1999, False)])
def test_features_get_the_memory_that_training_left(free: int, fits: bool) -> None:
    told = Told(free=free, reserved=5000)  # 5,000 bytes were reserved for training
    residency = Residency(memory=told)
    residency.trained(META)
    assert (residency.copy_of("a", FEATURES, META) is not None) == fits


def test_a_copy_leaves_less_for_the_next_one() -> None:
    told = Told(free=3000, reserved=5000)
    residency = Residency(memory=told)
    residency.trained(META)
    assert residency.copy_of("train", FEATURES, META) is not None
    told.free, told.reserved = 1000, 7000
    residency.trained(META)  # what the copy takes is not what training needs
    assert residency.copy_of("validate", FEATURES, META) is None
    assert residency.copy_of("small", FEATURES[:50], META) is not None


def test_all_batches_share_one_copy_of_equal_content() -> None:
    residency = Residency(True)
    copy = residency.copy_of("a", FEATURES, META)
    assert copy is residency.copy_of("a", FEATURES.clone(), META)
    assert copy is not residency.copy_of("b", FEATURES, META)
    assert copy is not residency.copy_of("a", FEATURES.double(), META)


def test_a_setting_decides_without_a_look_at_the_memory() -> None:
    def unasked(device: torch.device) -> Memory:
        raise AssertionError("nobody should ask")

    assert Residency(True, memory=unasked).copy_of("a", FEATURES, META) is not None
    assert Residency(False, memory=unasked).copy_of("a", FEATURES, META) is None
    assert Residency(True, memory=unasked).copy_of("a", FEATURES, torch.device("cpu")) is None  # it is there already


@pytest.mark.parametrize("wanted", ["auto", True])
def test_dropped_features_come_back_once_training_has_shown_what_it_needs(wanted: bool) -> None:
    told = Told(free=9000, reserved=0)
    residency = Residency(wanted, memory=told)
    residency.trained(META)
    assert residency.copy_of("a", FEATURES, META) is not None
    residency.drop(META)
    assert not residency.holds(META) and residency.copy_of("a", FEATURES, META) is None
    told.free, told.reserved = 1000, 8000  # a larger model
    residency.trained(META)
    assert residency.copy_of("a", FEATURES, META) is None
    told.free, told.reserved = 8000, 1000  # a smaller one
    residency.trained(META)
    assert residency.copy_of("a", FEATURES, META) is not None


def test_what_lies_beside_is_dropped_as_well() -> None:
    videos = Residency(True)
    embeddings = Residency(True, beside=videos)
    assert videos.copy_of("a", FEATURES, META) is not None
    assert embeddings.holds(META)
    embeddings.drop(META)
    assert not videos.holds(META)


def test_a_copy_that_validation_makes_is_one_for_training() -> None:
    residency = Residency(True)
    with torch.inference_mode():
        copy = residency.copy_of("a", FEATURES, META)
    assert copy is not None and not copy.is_inference()


def test_another_process_starts_without_copies() -> None:
    residency = Residency(True)
    residency.copy_of("a", FEATURES, META)
    received = pickle.loads(pickle.dumps(residency))
    assert received.wanted is True and residency.holds(META) and not received.holds(META)


def test_a_copy_that_does_not_fit_after_all_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    assert Residency(True).copy_of("a", FEATURES, META) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_keeps_and_frees_a_copy() -> None:
    device, residency = torch.device("cuda"), Residency()
    features = torch.randn(1 << 20, 16)
    before = torch.cuda.memory_allocated(device)
    residency.trained(device)
    copy = residency.copy_of("a", features, device)
    assert copy is not None and torch.equal(copy.cpu(), features)
    del copy
    assert torch.cuda.memory_allocated(device) - before == features.nbytes
    residency.drop(device)
    assert torch.cuda.memory_allocated(device) == before
