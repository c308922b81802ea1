"""A training step reads nothing from the device, fits into a CUDA graph, and falls back where GPU memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import models
from data.batches import Batch
from data.residency import Residency
from models import FusedMLPConfig
from models.contrastive.contrast import CrossModalConfig
from models.losses import LossConfig
from models.optim import AverageConfig, OptimizerConfig, ScheduleConfig
from tests.models import test_models
from tests.support.operator_trace import host_looks
from tests.support.small_data import small_data
from tests.support.video_features import statistics
from tuner.errors import ConfigError
from tuner.training.config import (
    ContrastiveConfig,
    PhasesConfig,
    PretrainConfig,
    ProbeConfig,
    TrainingConfig,
    TrialConfig,
)
from tuner.training.contrastive import pretrain
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.ranks import ALONE
from tuner.training.steps import GraphedStep, MemoryFallback, StepLoop
from tuner.training.steps.graph import WARM_UP, fill, with_room
from tuner.training.supervised import TrainingStep, begin, graphed, train

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TIMES = ("seconds", "videos_per_second")
ADAM = OptimizerConfig(kind="adam", learning_rate=0.01, schedule=ScheduleConfig(kind="cosine", warmup=0.1))
RMSPROP = OptimizerConfig(kind="rmsprop_tf", learning_rate=0.003, momentum=0.5)
SGD = OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.9)
LARS = OptimizerConfig(kind="lars", learning_rate=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(small_data(tmp_path_factory.mktemp("steps"), train=320))


def trial(optimizer: OptimizerConfig = ADAM, loss: LossConfig | None = None, **training: Any) -> TrialConfig:
    return TrialConfig(
        model=FusedMLPConfig(towers={"rgb": 12, "audio": 6}, hidden=16, dropout=0.4),
        optimizer=optimizer,
        loss=loss or LossConfig(),
        training=TrainingConfig(**({"batch_size": 32, "epochs": 3, "precision": "fp32"} | training)),
    )


def contrastive(kind: Any, **settings: Any) -> ContrastiveConfig:
    method = {"queue": 100} if kind != "moco_v3" else {"hidden": 32}
    return ContrastiveConfig(
        model=FusedMLPConfig(towers={"rgb": 12, "audio": 6}, hidden=16, dropout=0.1),
        pretrain=PretrainConfig(kind=kind, dimension=8, batch_size=64, epochs=1, optimizer=SGD, **method, **settings),
        probe=ProbeConfig(optimizer=ADAM),
        training=PhasesConfig(precision="fp32"),
    )


def numbers(trial: TrialConfig, data: Any, device: torch.device = CPU) -> tuple[list[dict[str, float]], list[Tensor]]:
    """The metrics of every epoch but its times, and the final weights and buffers."""
    epochs = []
    for progress in train(trial, data, device=device, seed=1):
        epochs.append({key: value for key, value in progress.metrics.items() if key not in TIMES})
    return epochs, [value.cpu().clone() for value in progress.state.model.state_dict().values()]  # type: ignore[attr-defined]


# --- no look by the host ----------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, int]]]:
    """What each step of a StepLoop looked at, after its first step, in which optimizers make their state."""
    found: list[dict[str, int]] = []
    step = StepLoop.step

    def traced(*arguments: Any, **options: Any) -> None:
        found.append(host_looks(lambda: step(*arguments, **options)))

    monkeypatch.setattr(StepLoop, "step", traced)
    yield found
    assert len(found) > 1 and found[1:] == [{}] * (len(found) - 1)


class Stub:
    """The data of a trial, as far as a step needs them: those of the tests of models, with frames where these do."""

    vocabulary = None

    def __init__(self, kind: str) -> None:
        self.sizes, self.statistics = test_models.sizes_of(kind), statistics()

    def batch(self, kind: str) -> Batch:
        offsets, indices = test_models.labels()
        return Batch(
            rows=torch.arange(6), inputs=test_models.inputs(kind), label_offsets=offsets, label_indices=indices
        )


STEPPING = [kind for kind in test_models.SMALL if kind != "linear"]  # linear takes no steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", STEPPING)
def test_a_step_of_every_model_makes_no_host_wait(kind: str, precision: Any, looks: list[dict[str, int]]) -> None:
    stub: Any = Stub(kind)
    training = TrainingConfig(batch_size=6, epochs=1, precision=precision, average=AverageConfig(decay=0.9))
    loss = LossConfig(l2=0.1, pos_weight_power=0.5, bootstrap="per_batch")
    config = TrialConfig(model=test_models.SMALL[kind], optimizer=RMSPROP, loss=loss, training=training)
    state = begin(config, stub, device=CPU, seed=1)
    step = TrainingStep(config, stub, state, device=CPU, seed=1, examples_per_epoch=18)
    step.run_epoch(iter([stub.batch(kind)] * 3), 0)
    assert len(looks) == 3


@pytest.mark.parametrize("optimizer", [ADAM, RMSPROP, SGD, LARS], ids=lambda config: config.kind)
def test_a_step_of_every_optimizer_makes_no_host_wait(
    optimizer: OptimizerConfig, data: Dataset, looks: list[dict[str, int]]
) -> None:
    numbers(trial(optimizer, epochs=1), data)


@pytest.mark.parametrize("kind", ["moco_v1", "moco_v2", "moco_v3"])
@pytest.mark.parametrize("cross_modal", [None, CrossModalConfig(mix=1.0)], ids=["views", "cross modal"])
def test_a_step_of_pretraining_makes_no_host_wait(
    kind: str, cross_modal: CrossModalConfig | None, data: Dataset, looks: list[dict[str, int]]
) -> None:
    config = contrastive(kind, cross_modal=cross_modal)
    state = pretrain.begin(config, data, device=CPU, seed=1)
    assert len(list(pretrain.epochs(config, data, state, device=CPU, seed=1))) == 1


# --- the batch of a graph ---------------------------------------------------------------------------------------------


def batch(*labels: list[int], rated: bool = False, seed: int = 0) -> Batch:
    """A batch with these classes of each video."""
    lengths = torch.tensor([0, *(len(classes) for classes in labels)])
    indices = torch.tensor([one for classes in labels for one in classes], dtype=torch.int64)
    lists = {"rated_offsets": lengths.cumsum(0), "rated_indices": indices} if rated else {}
    features_BD = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return Batch(
        rows=torch.arange(len(labels)) + seed,
        inputs=(features_BD,),
        label_offsets=lengths.cumsum(0),
        label_indices=indices,
        **lists,
    )


@pytest.mark.parametrize("rated", [False, True])
def test_the_tensors_of_a_graph_hold_one_batch_after_the_other(rated: bool) -> None:
    first, second = batch([3, 4, 9], [1], rated=rated), batch([], [5, 2], rated=rated, seed=7)
    target = with_room(first)
    places = [tensor.data_ptr() for tensor in (target.rows, *target.inputs, target.label_indices)]
    for one in (first, second, first):
        assert fill(target, one)
        assert torch.equal(target.rows, one.rows) and torch.equal(target.features_BD, one.features_BD)
        for offsets, indices in (("label_offsets", "label_indices"), ("rated_offsets", "rated_indices")):
            if getattr(one, offsets) is not None:
                assert torch.equal(getattr(target, offsets), getattr(one, offsets))
                assert torch.equal(getattr(target, indices)[: len(getattr(one, indices))], getattr(one, indices))
    assert places == [tensor.data_ptr() for tensor in (target.rows, *target.inputs, target.label_indices)]
    assert first.rows.data_ptr() != target.rows.data_ptr()


def test_a_batch_that_does_not_fit_is_not_copied() -> None:
    target = with_room(batch([1], [2]))
    before = target.rows.clone(), target.label_indices.clone()
    assert not fill(target, batch([1], [2], [3], seed=5))
    assert not fill(target, batch([1] * 2000, [2], seed=5))
    assert torch.equal(target.rows, before[0]) and torch.equal(target.label_indices, before[1])


class OnCpu(GraphedStep):
    """Takes the steps of a graph on the CPU: a replay is the step itself, on the tensors of the graph."""

    def __init__(self) -> None:
        self.steps, self.graph, self.batch, self.failed, self.replays = 0, None, None, False, 0

    def _on_stream(self, step: Callable[[Batch], None], batch: Batch) -> None:
        step(batch)

    def _capture(self, step: Callable[[Batch], None], batch: Batch) -> None:
        graph_batch = self.batch = with_room(batch)

        def replay() -> None:
            self.replays += 1
            step(graph_batch)

        self.graph = cast(Any, SimpleNamespace(replay=replay))


@pytest.mark.parametrize("optimizer", [ADAM, RMSPROP], ids=lambda config: config.kind)
@pytest.mark.parametrize("bootstrap", ["none", "per_batch", "fixed"])
def test_every_batch_trains_once_and_in_its_order_in_the_tensors_of_a_graph(
    optimizer: OptimizerConfig, bootstrap: Any, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trial(optimizer, LossConfig(bootstrap=bootstrap, pos_weight_power=0.5), average=AverageConfig(decay=0.9))
    expected, graphed_step = numbers(config, data), OnCpu()
    monkeypatch.setattr("tuner.training.supervised.graphed", lambda *arguments: graphed_step)
    found = numbers(config, data)
    assert graphed_step.replays == 3 * 10 - WARM_UP
    # Not bit for bit: on a CPU, a value in the vector part of an array and one in its rest differ in the last digit.
    for one, other in zip(found[0], expected[0], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "changes", "reason"),
    [
        ("cpu", {}, "it does not train on a GPU"),
        ("cuda", {"accumulate": 2}, "training.accumulate is above 1"),
    ],
)
def test_a_graph_that_is_not_possible_is_an_error_only_where_it_is_required(
    device: str, changes: dict[str, Any], reason: str, data: Dataset
) -> None:
    for wanted in ("auto", False, True):
        config = trial(cuda_graph=wanted, **changes)
        expected = (
            pytest.raises(ConfigError, match=f"cuda_graph: true, .*: {reason}") if wanted is True else nullcontext()
        )
        with expected:
            state: Any = None
            assert graphed(config, data, state, torch.device(device), ALONE) is None


# --- memory -----------------------------------------------------------------------------------------------------------


class Full(Residency):
    """Resident features beside which some epochs of a trial on the CPU run out of memory, until they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.measured = True, 0

    def possible(self, device: torch.device) -> bool:
        return True

    def holds(self, device: torch.device) -> bool:
        return self.held

    def drop(self, device: torch.device) -> None:
        self.held = False

    def trained(self, device: torch.device) -> None:
        self.measured += 1


def out_of_memory_in(step: int, residency: Full, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let this step of a training fail while features are resident; returns the numbers of the steps taken."""
    taken: list[int] = []
    original = StepLoop.step

    def limited(*arguments: Any, **options: Any) -> None:
        taken.append(len(taken))
        original(*arguments, **options)  # a step that fails may have drawn and moved running statistics
        if residency.held and len(taken) > step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(StepLoop, "step", limited)
    return taken


@pytest.mark.parametrize("step", [0, 4])
def test_a_trial_that_needs_the_memory_of_resident_features_has_the_numbers_of_one_without(
    step: int, data: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = trial(average=AverageConfig(decay=0.9), loss=LossConfig(bootstrap="per_batch"))
    expected = numbers(config, data)
    residency = Full()
    taken = out_of_memory_in(step, residency, monkeypatch)
    found = numbers(config, replace(data, residency=residency))
    assert not residency.held and residency.measured == 3 and len(taken) == 3 * 10 + step + 1
    assert found[0] == expected[0]
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))
    assert "the features no longer stay on cpu, as training needs their memory (CUDA out of memory" in caplog.text


def test_pretraining_falls_back_to_the_same_numbers(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def encoder(data: Dataset) -> list[Tensor]:
        state = pretrain.begin(contrastive("moco_v2"), data, device=CPU, seed=1)
        assert list(pretrain.epochs(contrastive("moco_v2"), data, state, device=CPU, seed=1))
        return [value.clone() for value in state.contrast.state_dict().values()]

    expected, residency = encoder(data), Full()
    out_of_memory_in(2, residency, monkeypatch)
    found = encoder(replace(data, residency=residency))
    assert not residency.held
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def failing(error: Exception) -> Callable[[], None]:
    def epoch() -> None:
        raise error

    return epoch


def test_memory_that_is_short_without_resident_features_is_an_error() -> None:
    residency, restored = Full(), []
    memory = MemoryFallback(residency, CPU, state=lambda: {"a": torch.ones(2)}, restore=restored.append)
    with pytest.raises(torch.OutOfMemoryError):
        memory.run(failing(torch.OutOfMemoryError("short")))
    assert not residency.held and len(restored) == 1
    with pytest.raises(torch.OutOfMemoryError):  # no features are left to be dropped
        memory.run(failing(torch.OutOfMemoryError("short")))
    assert len(restored) == 1


def test_only_a_lack_of_memory_drops_features() -> None:
    residency = Full()
    memory = MemoryFallback(residency, CPU, state=dict, restore=lambda state: None)
    with pytest.raises(RuntimeError, match="another error"):
        memory.run(failing(RuntimeError("another error")))
    assert residency.held


def test_the_state_is_held_until_an_epoch_has_succeeded_beside_the_features() -> None:
    residency, states = Full(), []
    memory = MemoryFallback(residency, CPU, state=lambda: states.append(1) or {}, restore=lambda state: None)
    residency.held = False
    memory.run(lambda: None)  # the features become resident after it
    residency.held = True
    memory.run(lambda: None)
    memory.run(lambda: None)
    assert len(states) == 2


# --- on a GPU ---------------------------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CUDA = torch.device("cuda")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("optimizer", [ADAM, RMSPROP, SGD, LARS], ids=lambda config: config.kind)
@pytest.mark.parametrize("bootstrap", ["none", "per_batch"])
def test_a_graph_changes_no_number(optimizer: OptimizerConfig, bootstrap: Any, data: Dataset) -> None:
    loss = LossConfig(bootstrap=bootstrap, l2=0.1, pos_weight_power=0.5)
    with_graph = trial(optimizer, loss, cuda_graph=True, average=AverageConfig(decay=0.9))
    without = replace(with_graph, training=replace(with_graph.training, cuda_graph=False))
    found, expected = numbers(with_graph, data, CUDA), numbers(without, data, CUDA)
    for one, other in zip(found[0], expected[0], strict=True):
        assert {k: v for k, v in one.items() if k != "gpu_memory_gib"} == pytest.approx(
            {k: v for k, v in other.items() if k != "gpu_memory_gib"}, rel=1e-4
        )
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", [kind for kind in test_models.SMALL if models.CONFIGS[kind].level == "video"])
def test_every_video_model_fits_into_a_graph(kind: str) -> None:
    if kind == "linear":
        pytest.skip("it takes no steps")
    stub: Any = Stub(kind)
    training = TrainingConfig(batch_size=6, epochs=1, cuda_graph=True)
    config = TrialConfig(model=test_models.SMALL[kind], optimizer=ADAM, training=training)
    state = begin(config, stub, device=CUDA, seed=1)
    step = TrainingStep(config, stub, state, device=CUDA, seed=1, examples_per_epoch=60)
    one = stub.batch(kind)
    on_gpu = replace(
        one,
        rows=one.rows.cuda(),
        inputs=tuple(tensor.cuda() for tensor in one.inputs),
        label_offsets=one.label_offsets.cuda(),
        label_indices=one.label_indices.cuda(),
    )
    first = step.run_epoch(iter([on_gpu] * 10), 0)
    assert step.steps.graph is not None and step.steps.graph.graph is not None
    assert step.run_epoch(iter([on_gpu] * 10), 0) < first


@pytest.mark.gpu
@gpu
def test_a_step_that_looks_is_trained_on_without_a_graph(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingStep.loss

    def looking(self: TrainingStep, batch: Any, progress: float) -> Tensor:
        loss = original(self, batch, progress)
        assert loss.item() > 0
        return loss

    expected = numbers(trial(cuda_graph=False), data, CUDA)
    monkeypatch.setattr(TrainingStep, "loss", looking)
    found = numbers(trial(), data, CUDA)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="this step cannot be captured"):
        numbers(trial(cuda_graph=True), data, CUDA)


@pytest.mark.gpu
@gpu
def test_no_step_on_a_gpu_waits(data: Dataset) -> None:
    """torch's own check of synchronisation, for a step without a graph and for one with it."""
    for wanted in (False, True):
        config = trial(cuda_graph=wanted)
        state = begin(config, data, device=CUDA, seed=1)
        batches = data.train_batches(32, 1, CUDA)
        step = TrainingStep(config, data, state, device=CUDA, seed=1, examples_per_epoch=320)
        step.run_epoch(batches.epoch(0), 0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for one in batches.epoch(1):
                step.steps.step([one], 0.0, loss_of=step.loss, add_gradients=step.add_penalty)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@gpu
def test_a_second_trial_finds_the_features_of_the_first_on_the_gpu(tmp_path: Path, data: Dataset) -> None:
    shared = replace(data, residency=Residency())
    one = numbers(trial(epochs=2), shared, CUDA)
    first = [copy.data_ptr() for copy in shared.residency._copies.values()]
    assert first
    two = numbers(trial(epochs=2), shared, CUDA)
    assert [copy.data_ptr() for copy in shared.residency._copies.values()] == first
    assert one[0][-1]["gap"] == pytest.approx(two[0][-1]["gap"], rel=1e-4)
