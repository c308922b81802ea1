"""Several workers of one trial, as real processes: they give the numbers of a single worker."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.support.ranked as ranked
from models.layers import BatchNorm, Normalize
from models.losses import LossConfig
from models.optim import AverageConfig, ClipConfig, OptimizerConfig, ScheduleConfig
from models.video.fused_mlp import FusedMLPConfig
from tests.support.finished import FAST, FinishedSearch
from tests.support.ranked import Group
from tuner.training.config import TrainingConfig, TrialConfig
from tuner.training.data_config import DataConfig
from tuner.training.ranks import ALONE, Ranks
from tuner.workers.trial import Job

# Slow because it starts processes that import torch; pytest-xdist runs all tests of this file in one process, which
# start those only once.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow, pytest.mark.xdist_group("ranks")]
COSINE = ScheduleConfig(kind="cosine", warmup=0.1)
CLIP = ClipConfig(kind="global", norm=0.5)
ADAM = OptimizerConfig(kind="adam", learning_rate=0.01, schedule=COSINE)
SGD = OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.9, schedule=COSINE)
RMSPROP = OptimizerConfig(kind="rmsprop_tf", learning_rate=0.003, schedule=COSINE, clip=CLIP)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    processes = Group(3)
    yield processes
    processes.end()


@pytest.fixture(scope="module")
def data(finished_search: FinishedSearch) -> DataConfig:
    """Shards of 400 training videos and 150 validation videos."""
    return finished_search.experiment.data


def trial(
    optimizer: OptimizerConfig = SGD, *, norm: Any = "batch_norm", dropout: float = 0.0, **settings: Any
) -> TrialConfig:
    names = ("batch_size", "accumulate", "average", "epochs")
    training = {name: settings.pop(name) for name in names if name in settings}
    towers = {"mean_rgb": 12, "mean_audio": 6}
    return TrialConfig(
        model=FusedMLPConfig(kind="fused_mlp", towers=towers, hidden=16, dropout=dropout, norm=norm),
        optimizer=optimizer,
        loss=LossConfig(**settings),
        training=TrainingConfig(**({"batch_size": 64, "epochs": 3, "precision": "fp32"} | training)),
    )


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "config",
    [
        trial(),
        trial(norm="layer_norm"),
        trial(RMSPROP, l1=0.1, l2=1.0, bootstrap="per_batch"),
        trial(SGD, bootstrap="fixed", pos_weight_power=0.25),
        trial(batch_size=50),  # no two, no three parts alike, and nothing left over
        trial(batch_size=1000, epochs=2),  # more than there is
        trial(batch_size=80, accumulate=4, average=AverageConfig(decay=0.9), bootstrap="per_batch"),
    ],
    ids=["batch_norm", "layer_norm", "per_batch", "fixed", "uneven", "one_batch", "accumulated"],
)
def test_several_ranks_give_the_numbers_of_one_process(
    group: Group, data: DataConfig, config: TrialConfig, size: int
) -> None:
    epochs, weights = ranked.train_trial(ALONE, config, data)
    results = group.run(size, ranked.train_trial, config, data)
    for found, found_weights in results:
        for one, other in zip(found, epochs, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        assert_alike(found_weights, weights, rtol=1e-3, atol=1e-5)
    for found, found_weights in results[1:]:  # and among each other, to the last bit
        assert found == results[0][0]
        assert_alike(found_weights, results[0][1], rtol=0, atol=0)


def test_ranks_with_dropout_resume_to_the_same_numbers(group: Group, data: DataConfig, tmp_path: Path) -> None:
    config = trial(ADAM, dropout=0.4, bootstrap="per_batch")
    whole, *_ = group.run(2, ranked.train_trial, config, data, None, tmp_path / "one")
    again = group.run(2, ranked.train_trial, config, data, tmp_path / "one")
    for epochs, weights in again:
        assert epochs == whole[0]
        assert_alike(weights, whole[1], rtol=0, atol=0)


def test_a_checkpoint_of_two_ranks_is_resumed_by_any_number_of_ranks(
    group: Group, data: DataConfig, tmp_path: Path
) -> None:
    config = trial(bootstrap="per_batch")
    (whole, _), _ = group.run(2, ranked.train_trial, config, data, None, tmp_path / "one")
    for size in (1, 3):
        for epochs, _ in group.run(size, ranked.train_trial, config, data, tmp_path / "one"):
            for one, other in zip(epochs, whole, strict=True):
                assert one == pytest.approx(other, rel=1e-4)


def test_each_rank_draws_its_own_random_numbers_reproducibly(group: Group) -> None:
    first, second = (group.run(3, ranked.draw, epoch) for epoch in (0, 1))
    torch.manual_seed(5)
    assert first[0] == second[0] == torch.rand(4).tolist()  # as a lone worker's
    assert len({tuple(numbers) for numbers in first + second}) == 5
    assert group.run(3, ranked.draw, 0) == first


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_loss_that_is_not_finite_on_one_rank_fails_all(group: Group, data: DataConfig, bad: int) -> None:
    errors = group.run(2, ranked.diverge, trial(norm="layer_norm", batch_size=400), data, bad)
    assert len(set(errors)) == 1 and errors[0].startswith("the loss is not finite in epoch 1 by step 1 ")


@pytest.mark.parametrize("failing", [(), (0,), (1,), (1, 2), (0, 1, 2)])
def test_an_error_on_one_rank_is_raised_on_all_ranks(group: Group, failing: tuple[int, ...]) -> None:
    told = group.run(3, ranked.together, failing)
    assert told == ([f"rank {failing[0]}"] * 3 if failing else ["did 0", "did 1", "did 2"])


@pytest.mark.parametrize("fraction", [1.0, 0.5, 2 / 150, 1 / 150])  # of 150 videos: down to fewer than there are ranks
@pytest.mark.parametrize("constant", [True, False])
def test_metrics_of_several_ranks_equal_those_of_one_process(
    group: Group, data: DataConfig, fraction: float, constant: bool
) -> None:
    data = replace(data, validate_fraction=fraction)
    last = torch.nn.Threshold(1e9, 0.0) if constant else torch.nn.Identity()  # ties: the order of the videos decides
    model = torch.nn.Sequential(Normalize(torch.zeros(32), torch.ones(32)), torch.nn.Linear(32, 12), last)
    expected = ranked.score(ALONE, model, data)
    for size in (2, 3):
        for found in group.run(size, ranked.score, model, data):
            assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "real rows"])
@pytest.mark.parametrize("rows", [[8, 8], [5, 4], [1, 12], [3, 4, 2]])
def test_batch_norm_over_ranks_uses_the_statistics_of_all_rows(group: Group, rows: list[int], masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(sum(rows), 5, generator=generator) for _ in range(2))
    x = x * 3 + 40  # a mean that one pass over squares would lose digits to
    real = torch.arange(len(x)) % 3 != 1 if masked else None
    alone = BatchNorm(5, momentum=0.3)
    own = x.clone().requires_grad_()
    out = alone(own, real)
    out.backward(grad)
    assert own.grad is not None and alone.weight.grad is not None and alone.bias.grad is not None
    state = {**alone.state_dict(), "weight.grad": alone.weight.grad, "bias.grad": alone.bias.grad}
    results = group.run(len(rows), ranked.normalise, x, grad, rows, real)
    torch.testing.assert_close(torch.cat([found for found, _, _ in results]), out.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([found for _, found, _ in results]), own.grad, rtol=1e-4, atol=1e-5)
    for _, _, found in results:
        assert_alike(found, state, rtol=1e-4, atol=1e-5)


def test_running_statistics_stay_equal_without_being_sent(group: Group) -> None:
    sent, buffers = zip(*group.run(2, ranked.buffers_after_steps, trial().model, 3), strict=True)
    assert sent == (False, False)
    assert any("running_mean" in name for name in buffers[0])
    assert_alike(buffers[1], buffers[0], rtol=0, atol=0)


@pytest.fixture
def job(finished_search: FinishedSearch) -> Job:
    trial = finished_search.experiment.trial_config(FAST)
    return Job(trial_id="trial-1", folder=finished_search.storage / "trial-1", trial=trial, seed=2)


def test_all_ranks_report_the_same_epochs_and_metrics(group: Group, job: Job, finished_search: FinishedSearch) -> None:
    first, second = group.run(2, ranked.work, job, finished_search.experiment.data, None)
    assert [metrics["epoch"] for metrics, _ in first] == [1, 2] and all(saved for _, saved in first)
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert {key: one[key] for key in ("gap", "loss_train", "map")} == {
            key: other[key] for key in ("gap", "loss_train", "map")
        }


@pytest.mark.parametrize("broken", [0, 1])
def test_all_ranks_report_a_node_that_cannot_open_its_data(
    group: Group, job: Job, finished_search: FinishedSearch, broken: int
) -> None:
    told = ({"fatal": f"{socket.gethostname()}: no shard matches on this node"}, False)
    assert group.run(2, ranked.work, job, finished_search.experiment.data, broken) == [[told], [told]]


def test_a_single_rank_needs_no_process_group() -> None:
    model, value = torch.nn.Linear(2, 2), torch.ones(3)
    assert Ranks.of_this_process() == ALONE and ALONE.parallel(model) is model
    assert ALONE.sum(value) is value and ALONE.gather(7) == [7]
    assert ALONE.share(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ALONE.seed(1, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("theirs", [torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm])
def test_a_batch_norm_with_the_statistics_of_one_rank_is_refused(theirs: type[torch.nn.Module]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), theirs(2))
    with pytest.raises(ValueError, match=f"1 is torch's {theirs.__name__}"):
        Ranks(rank=0, size=2).parallel(model)
