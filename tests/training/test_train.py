"""The numbers of one trial: as recorded, equal in two runs, and equal after a resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tfrecord import TFRecordWriter
from torch import Tensor, nn

import models
from data.batches import Batches
from data.errors import DataError
from models import losses
from models.losses import DistillConfig, LossConfig
from models.losses import weights as loss_weights
from models.optim import AverageConfig, ClipConfig, OptimizerConfig, ScheduleConfig, learning_rate_at
from models.video.fused_mlp import FusedMLPConfig
from tests.support.small_data import small_data
from tests.support.workplace import PROJECT
from tuner.errors import CheckpointError, ConfigError, TrialDiverged
from tuner.training import checkpoint, teacher
from tuner.training.config import TrainingConfig, TrialConfig
from tuner.training.data_config import DataConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.objective import Objective
from tuner.training.ranks import ALONE
from tuner.training.state import Progress
from tuner.training.supervised import train

GOLDEN = PROJECT / "tests" / "golden" / "fused_mlp_cpu.txt"
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
# What the clock says, and not the seed.
TIMES = ("seconds", "videos_per_second")

CLIPPED = ClipConfig(kind="global", norm=0.5)
STEADY = ScheduleConfig(kind="constant")
COSINE = ScheduleConfig(kind="cosine", warmup=0.1)
ADAM = OptimizerConfig(kind="adam", learning_rate=0.01, schedule=COSINE)
OPTIMIZERS = {
    "adam": ADAM,
    "rmsprop_tf": OptimizerConfig(kind="rmsprop_tf", learning_rate=0.003, momentum=0.5, schedule=COSINE, clip=CLIPPED),
    "sgd": OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, schedule=COSINE),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return small_data(tmp_path_factory.mktemp("train"), train=300)


@pytest.fixture(scope="module")
def data(shards: DataConfig) -> Dataset:
    return open_dataset(shards)


def trial(optimizer: OptimizerConfig = ADAM, *, dropout: float = 0.4, **settings: Any) -> TrialConfig:
    """A small trial; `settings` are those of training and of the loss."""
    names = ("batch_size", "epochs", "precision", "seed", "accumulate", "average")
    training = {name: settings.pop(name) for name in names if name in settings}
    norm = settings.pop("norm", "batch_norm")
    return TrialConfig(
        model=FusedMLPConfig(kind="fused_mlp", towers={"rgb": 12, "audio": 6}, hidden=16, dropout=dropout, norm=norm),
        optimizer=optimizer,
        loss=LossConfig(**settings),
        training=TrainingConfig(**({"batch_size": 64, "epochs": 3, "precision": "fp32"} | training)),
    )


def numbers(progress: Progress) -> dict[str, float]:
    return {key: value for key, value in progress.metrics.items() if key not in TIMES}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that the tensors are equal bit for bit, with NaN equal to NaN."""
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name].numpy(), expected[name].numpy(), err_msg=name)


def run(config: TrialConfig, data: Dataset, **arguments: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The numbers of every epoch, and the weights after the last one."""
    epochs = []
    for progress in train(config, data, device=CPU, seed=1, **arguments):
        epochs.append(numbers(progress))
    return epochs, weights(progress.state.model)


def losses_of_steps(config: TrialConfig, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The training loss of every step, without the penalties."""
    seen: list[float] = []
    original = losses.build

    def build(*settings: Any) -> Any:
        loss_of = original(*settings)

        def spy(*arguments: Any, **options: Any) -> Tensor:
            loss = loss_of(*arguments, **options)
            seen.append(loss.item())
            return loss

        return spy

    monkeypatch.setattr(losses, "build", build)
    run(config, data)
    return seen


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="torch 2.11 draws other initial weights")
def test_training_follows_the_recorded_losses(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without dropout: torch draws its masks differently on different processors.
    optimizer = OptimizerConfig(kind="rmsprop_tf", learning_rate=0.003, schedule=COSINE, clip=CLIPPED)
    config = trial(optimizer, dropout=0.0, batch_size=30, epochs=1, l2=10.0, pos_weight_power=0.25, bootstrap="fixed")
    golden = dict(line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#"))
    found = losses_of_steps(config, data, monkeypatch)
    assert {str(step): loss for step, loss in enumerate(found, start=1)} == pytest.approx(
        {step: float(loss) for step, loss in golden.items()}, rel=1e-3
    ), "\n".join(f"{step} {loss:.6f}" for step, loss in enumerate(found, start=1))


def test_two_runs_of_a_trial_give_the_same_numbers(data: Dataset) -> None:
    config = trial(bootstrap="per_batch")
    (first, first_weights), (second, second_weights) = run(config, data), run(config, data)
    assert first == second
    assert_same(second_weights, first_weights)


def test_another_seed_gives_other_numbers(data: Dataset) -> None:
    (one,), (other,) = ([numbers(p) for p in train(trial(epochs=1), data, device=CPU, seed=seed)] for seed in (1, 2))
    assert one["loss_train"] != other["loss_train"]


def test_training_raises_the_gap(data: Dataset) -> None:
    epochs, _ = run(trial(epochs=8), data)
    assert epochs[-1]["loss_validate"] < 0.8 * epochs[0]["loss_validate"]
    assert epochs[-1]["gap"] > 1.3 * epochs[0]["gap"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("bootstrap", ["per_batch", "fixed"])
def test_a_resumed_trial_equals_the_uninterrupted_one(data: Dataset, tmp_path: Path, kind: str, bootstrap: str) -> None:
    config = trial(OPTIMIZERS[kind], bootstrap=bootstrap, l1=0.1, l2=1.0, pos_weight_power=0.25)
    expected = []
    for progress in train(config, data, device=CPU, seed=1):
        expected.append(numbers(progress))
        progress.state.save(tmp_path / f"epoch-{progress.epoch}", config)
    expected_weights = weights(progress.state.model)
    for epoch in (1, 2, 3):
        torch.manual_seed(99)  # another process has other random numbers
        found, found_weights = run(config, data, resume_from=tmp_path / f"epoch-{epoch}")
        assert found == expected[epoch - 1 :]  # its own epoch is told once more
        assert_same(found_weights, expected_weights)


def test_a_resumed_trial_restores_the_averaged_and_the_live_weights(data: Dataset, tmp_path: Path) -> None:
    """The averaged weights are those that the checkpoint exports; the next step changes the live weights."""
    config = trial(average=AverageConfig(decay=0.9))
    expected, live = [], {}
    for progress in train(config, data, device=CPU, seed=1):
        expected.append(numbers(progress))
        progress.state.save(tmp_path / f"epoch-{progress.epoch}", config)
        live = weights(progress.state.model)
        exported = checkpoint.load_weights(tmp_path / f"epoch-{progress.epoch}", settings=config.settings)
        assert_same(exported, weights(progress.state.average.model))
        assert any(not torch.equal(exported[name], live[name]) for name in live)
    for epoch in (1, 3):
        torch.manual_seed(99)
        found, found_live = run(config, data, resume_from=tmp_path / f"epoch-{epoch}")
        assert found == expected[epoch - 1 :]
        assert_same(found_live, live)


def test_the_average_is_validated_and_does_not_change_training(data: Dataset) -> None:
    plain, plain_weights = run(trial(), data)
    (*_, averaged), averaged_weights = run(trial(average=AverageConfig(half_life=8.0)), data)
    assert averaged["loss_train"] == plain[-1]["loss_train"]
    assert_same(averaged_weights, plain_weights)
    assert averaged["loss_validate"] != plain[-1]["loss_validate"]


@pytest.mark.parametrize("settings", [{}, {"bootstrap": "per_batch"}, {"bootstrap": "fixed"}], ids=str)
def test_accumulated_gradients_are_those_of_the_whole_batch(data: Dataset, settings: dict[str, Any]) -> None:
    """The model has no BatchNorm and no dropout. Gradients are clipped, which must come after all parts."""
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.9, schedule=COSINE, clip=CLIPPED)
    whole, parts = (
        run(trial(optimizer, dropout=0.0, norm="layer_norm", l2=1.0, accumulate=n, **settings), data) for n in (1, 4)
    )
    for found, expected in zip(parts[0], whole[0], strict=True):
        for key in ("loss_train", "loss_validate", "learning_rate"):  # rounding may turn a rank around
            assert found[key] == pytest.approx(expected[key], rel=1e-4)
    for name, weight in whole[1].items():
        torch.testing.assert_close(parts[1][name], weight, rtol=1e-3, atol=1e-5)


def test_accumulation_needs_enough_videos_for_one_batch(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"do not fill one batch of 1,000, which training\.accumulate needs"):
        next(train(trial(batch_size=1000, accumulate=2), data, device=CPU, seed=1))


def test_a_batch_size_that_accumulate_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of accumulate, but got 64 and 3"):
        trial(accumulate=3)


class TestWeightedHamming:
    """Class weights from the vocabulary's TrainVideoCount."""

    def test_class_weights_follow_the_index_column_and_not_the_row(self, data: Dataset, tmp_path: Path) -> None:
        path, counts = tmp_path / "vocabulary.csv", [2 ** (c % 5) for c in range(12)]
        rows = [f'{c},{counts[c]},"a, {c}"' for c in (3, 0, 11, *range(1, 3), *range(4, 11))]  # not sorted
        path.write_text("\n".join(["Index,TrainVideoCount,Name", *rows]))
        config = trial(kind="weighted_hamming", class_weight_power=2.0)
        loss_of = objective(config, replace(data, vocabulary=str(path)))
        (batch,) = data.validate_batches(90, CPU).epoch(0)
        weights_C = (np.mean(counts) / np.array(counts)) ** 2
        logits = torch.full((90, 12), -np.inf)
        logits[:, 4] = 0.0  # one class says nothing: its loss is log 2 times its weight
        batch = replace(batch, label_offsets=torch.zeros(91, dtype=torch.long), label_indices=torch.zeros(0).long())
        assert loss_of(logits, batch).item() == pytest.approx(np.log(2) * weights_C[4], rel=1e-3)

    def test_weighted_hamming_without_a_vocabulary_is_refused(self, data: Dataset) -> None:
        with pytest.raises(ConfigError, match=r"needs the counts of data\.vocabulary, which is not set"):
            objective(trial(kind="weighted_hamming"), data)


class TestDistillation:
    """The loss is w CE(p, teacher) + (1 - w) CE(p, y), with the teacher's rows found by the videos' ids."""

    @staticmethod
    def written(path: Path, ids: np.ndarray) -> DistillConfig:
        """Write predictions of these videos in another order; the classes of a video depend on its id."""
        classes_NK = np.stack([np.arange(3) + int(id_[0]) % 9 for id_ in ids]).astype(np.int32)
        probabilities_NK = np.tile(np.float16([0.75, 0.5, 0.25]), (len(ids), 1))
        order = np.random.default_rng(0).permutation(len(ids))
        teacher.write(path, ids[order], classes_NK[order], probabilities_NK[order], num_classes=12, model={})
        return DistillConfig(predictions=str(path), weight=0.25)

    def test_the_loss_mixes_labels_and_teacher(self, data: Dataset, tmp_path: Path) -> None:
        distill = self.written(tmp_path / "t.safetensors", data.train.ids)
        (batch,) = Batches(data.train, batch_size=300, shuffle=True, seed=5).epoch(0)
        logits = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
        targets_NC = torch.zeros(300, 12)
        for row, id_ in enumerate(data.train.ids[batch.rows]):
            first = int(id_[0]) % 9
            targets_NC[row, first : first + 3] = torch.tensor([0.75, 0.5, 0.25])
        soft = nn.functional.binary_cross_entropy_with_logits(logits, targets_NC, reduction="none").sum(1).mean()
        hard = losses.sigmoid_cross_entropy(logits, batch.label_offsets, batch.label_indices)
        found = objective(trial(distill=distill), data)(logits, batch)
        assert found.item() == pytest.approx((0.25 * soft + 0.75 * hard).item(), rel=1e-5)

    def test_a_teacher_without_predictions_for_a_video_is_refused(self, data: Dataset, tmp_path: Path) -> None:
        distill = self.written(tmp_path / "t.safetensors", data.train.ids[:-2])
        with pytest.raises(ConfigError, match="has no predictions of 2 of the 300 training videos; predict all of"):
            objective(trial(distill=distill), data)


def objective(config: TrialConfig, data: Dataset) -> Objective:
    sizes = {"batch_size": 64, "part_size": 64}
    generator = torch.Generator().manual_seed(1)
    return Objective(config.loss, data, **sizes, bootstrap=generator, device=CPU, seed=1, ranks=ALONE)


def test_a_resumed_trial_has_the_metrics_of_the_epochs_before(data: Dataset, tmp_path: Path) -> None:
    config = trial()
    steps = train(config, data, device=CPU, seed=1)
    history = [next(steps).metrics]
    progress = next(steps)
    progress.state.save(tmp_path / "two", config)
    history.append(progress.metrics)
    first, *rest = train(config, data, device=CPU, seed=1, resume_from=tmp_path / "two")
    assert first.repeated and first.epoch == 2
    assert first.state.history[:2] == history
    assert [later.epoch for later in rest] == [3] and not rest[0].repeated


def test_a_checkpoint_of_other_settings_is_refused(data: Dataset, tmp_path: Path) -> None:
    config = trial(epochs=1)
    for progress in train(config, data, device=CPU, seed=1):
        progress.state.save(tmp_path / "one", config)
    with pytest.raises(CheckpointError, match=r"training\.epochs: 1 -> 2"):
        next(train(trial(epochs=2), data, device=CPU, seed=1, resume_from=tmp_path / "one"))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_loss_that_is_not_finite_fails_the_trial_and_changes_no_weight(data: Dataset, kind: str) -> None:
    steps = train(trial(OPTIMIZERS[kind], l2=1.0), data, device=CPU, seed=1)
    state = next(steps).state
    with torch.no_grad():
        next(iter(state.model.parameters()))[0, 0] = math.nan
    before = {name: value.detach().clone() for name, value in state.model.named_parameters()}
    moments = [{k: v.clone() for k, v in one.items() if torch.is_tensor(v)} for one in state.optimizer.state.values()]
    with pytest.raises(TrialDiverged, match=r"the loss is not finite in epoch 2 by step 1 \(learning rate .*keep"):
        next(steps)
    assert_same({name: value.detach() for name, value in state.model.named_parameters()}, before)
    for found, expected in zip(state.optimizer.state.values(), moments, strict=True):
        assert_same({name: found[name] for name in expected}, expected)
    assert state.epoch == 1  # the epoch is not one


def test_a_trial_with_a_far_too_large_learning_rate_diverges(data: Dataset) -> None:
    # Decoupled weight decay multiplies every weight by about 1e12 in each step: float32 ends at 3e38.
    wild = OptimizerConfig(kind="adamw", learning_rate=1e6, weight_decay=1e6, schedule=STEADY)
    with pytest.raises(TrialDiverged, match=r"the loss is not finite.*learning rate 1e\+06"):
        run(trial(wild, batch_size=10), data)


def test_a_trial_that_diverges_in_the_last_step_of_an_epoch_is_told_as_such(data: Dataset) -> None:
    wild = OptimizerConfig(kind="adamw", learning_rate=1e6, weight_decay=1e6, schedule=STEADY)
    with pytest.raises(TrialDiverged, match=r"the model has diverged: .*NaN in 90 of 90 videos"):
        run(trial(wild), data)


class TestWhatActsInTrainingOnly:
    """One step on all videos, with bootstrap, positive weights and penalties, is compared with its definition."""

    VARIANTS = (
        {},
        {"bootstrap": "fixed"},
        {"bootstrap": "per_batch"},
        {"pos_weight_power": 0.5},
        {"pos_weight_power": 0.5, "pos_weight_max": 2.0},
        {"l1": 1.0, "l2": 100.0},
    )

    @pytest.mark.parametrize("settings", VARIANTS, ids=str)
    def test_the_validation_loss_has_no_weights_or_penalties(self, data: Dataset, settings: dict[str, Any]) -> None:
        (progress,) = train(trial(epochs=1, **settings), data, device=CPU, seed=1)
        features_ND, labels_NC = dense(data.validate_batches(90, CPU))
        with torch.no_grad():
            logits_NC = progress.state.model.eval()(features_ND)
        plain = nn.functional.binary_cross_entropy_with_logits(logits_NC, labels_NC, reduction="none")
        assert progress.metrics["loss_validate"] == pytest.approx(plain.sum(1).mean().item(), rel=1e-5)

    @pytest.mark.parametrize("settings", VARIANTS, ids=str)
    def test_the_training_loss_has_the_weights_and_penalties(self, data: Dataset, settings: dict[str, Any]) -> None:
        config = trial(epochs=1, dropout=0.0, batch_size=300, **settings)
        (progress,) = train(config, data, device=CPU, seed=1)
        torch.manual_seed(1)
        model = models.build(config.model, data.sizes, data.statistics).train()
        features_ND, labels_NC = dense(Batches(data.train, batch_size=300, shuffle=False))
        with torch.no_grad():
            logits_NC = model(features_ND)
        counts_C = labels_NC.sum(0).clamp(1, 299)
        ratio_C = (300 / counts_C - 1) ** settings.get("pos_weight_power", 0.0)
        loss_NC = nn.functional.binary_cross_entropy_with_logits(
            logits_NC, labels_NC, reduction="none", pos_weight=ratio_C.clamp(max=settings.get("pos_weight_max", 1e9))
        )
        drawn_N = torch.ones(300)
        if settings.get("bootstrap") == "fixed":
            drawn_N = torch.from_numpy(np.random.default_rng(1).multinomial(300, [1 / 300] * 300)).float()
        if settings.get("bootstrap") == "per_batch":  # drawn for the places in the batch
            drawn_N = loss_weights.per_batch_bootstrap_weights(300, torch.Generator().manual_seed(1))
            order = next(iter(data.train_batches(300, 1, CPU).epoch(0))).rows
            loss_NC = loss_NC[order]
        assert progress.metrics["loss_train"] == pytest.approx((loss_NC.sum(1) * drawn_N).mean().item(), rel=1e-5)


def dense(batches: Batches) -> tuple[Tensor, Tensor]:
    """The one batch of a split: features [N, D] and labels [N, C] of 0 and 1."""
    (batch,) = batches.epoch(0)
    labels_NC = torch.zeros(len(batch.rows), 12)
    rows = torch.repeat_interleave(batch.label_offsets.diff())
    labels_NC[rows, batch.label_indices] = 1
    return batch.features_BD.float(), labels_NC


def test_bf16_trains_as_well_as_fp32(data: Dataset) -> None:
    exact, _ = run(trial(epochs=2), data)
    rounded, found_weights = run(trial(epochs=2, precision="bf16"), data)
    assert all(math.isfinite(value) for epoch in rounded for value in epoch.values())
    assert rounded != exact
    assert rounded[-1]["loss_validate"] == pytest.approx(exact[-1]["loss_validate"], rel=0.05)
    assert {value.dtype for value in found_weights.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("kind", ["cosine", "staircase", "constant"])
def test_the_schedule_reaches_its_end_with_the_last_step(data: Dataset, kind: Any) -> None:
    schedule = ScheduleConfig(kind=kind, decay=0.5, decay_examples=256, final=0.1, warmup=0.1)
    optimizer = OptimizerConfig(kind="adam", learning_rate=0.01, schedule=schedule)
    epochs, _ = run(trial(optimizer, epochs=4), data)
    in_all = 4 * 4 * 64  # four epochs of four whole batches
    for epoch, metrics in enumerate(epochs, start=1):
        expected = learning_rate_at(schedule, 0.01, epoch * in_all // 4 - 64, in_all)
        assert metrics["learning_rate"] == pytest.approx(expected)
    end = {"cosine": 0.1, "staircase": 0.125, "constant": 1.0}[kind]
    assert epochs[-1]["learning_rate"] == pytest.approx(0.01 * end, rel=0.12)  # the last step is one before the end


def test_a_batch_size_above_the_number_of_videos_gives_one_step_an_epoch(data: Dataset) -> None:
    optimizer = OptimizerConfig(kind="adam", learning_rate=0.01, schedule=ScheduleConfig(kind="cosine"))
    epochs, _ = run(trial(optimizer, epochs=2, batch_size=1000), data)
    assert epochs[1]["learning_rate"] == pytest.approx(0.005)  # half of the examples are seen


def test_each_epoch_reports_the_best_gap_so_far(data: Dataset) -> None:
    epochs, _ = run(trial(epochs=4), data)
    for epoch, metrics in enumerate(epochs, start=1):
        assert metrics["gap_best"] == max(past["gap"] for past in epochs[:epoch])


def test_all_trials_have_one_seed_unless_it_is_per_trial() -> None:
    assert [trial(seed=7).seed(number) for number in (0, 3)] == [7, 7]
    assert [trial(seed="per_trial").seed(number) for number in (0, 3)] == [1, 4]


class TestLabelFraction:
    @pytest.fixture
    def few(self, data: Dataset) -> Dataset:
        return data.with_labels_of(np.arange(0, 300, 5))

    def test_training_uses_only_the_labelled_videos(self, few: Dataset) -> None:
        seen = [batch.rows for epoch in (0, 1) for batch in few.train_batches(16, 1, CPU).epoch(epoch)]
        assert set(torch.cat(seen).tolist()) <= set(range(0, 300, 5))
        assert len(torch.cat(seen)) == 2 * 48  # of 60, the last smaller batch is left out

    def test_labels_are_counted_on_the_labelled_videos_and_features_on_all(self, few: Dataset, data: Dataset) -> None:
        dense = np.zeros((300, 12), np.int64)
        for row in range(300):
            begin, end = data.train.label_offsets[row : row + 2]
            dense[row, data.train.label_indices[begin:end]] = 1
        assert few.statistics.num_videos == 60
        assert few.statistics.label_counts_C.tolist() == dense[::5].sum(axis=0).tolist()
        assert torch.equal(few.statistics.mean_D, data.statistics.mean_D)

    def test_a_sample_of_training_videos_has_only_labelled_ones(self, few: Dataset, data: Dataset) -> None:
        for source, step in ((few, 5), (data, 1)):
            rows = torch.cat(
                [batch.rows for batch in source.labelled_batches(16, CPU, max_videos=40).epoch(0)]
            ).tolist()
            assert len(set(rows)) == len(rows) == 40 and all(row % step == 0 for row in rows)
        assert few.labelled_batches(16, CPU, max_videos=60).num_videos == few.labelled_batches(16, CPU).num_videos == 60

    def test_a_fixed_bootstrap_draws_from_the_labelled_videos(self, few: Dataset) -> None:
        weights = few.bootstrap_weights(3)
        assert weights.sum() == 60 and not weights[torch.arange(300) % 5 != 0].any()
        assert torch.equal(weights[::5], loss_weights.fixed_bootstrap_weights(60, 3))

    def test_another_label_fraction_gives_another_fingerprint(self, few: Dataset, data: Dataset) -> None:
        assert few.fingerprint != data.fingerprint and few.train.fingerprint == data.train.fingerprint

    def test_shares_are_nested_and_the_same_for_every_trial(self, shards: DataConfig) -> None:
        rows = [open_dataset(replace(shards, label_fraction=share)).labelled_rows for share in (0.1, 0.5, 0.1)]
        assert rows[0] is not None and rows[1] is not None and rows[2] is not None
        assert set(rows[0]) < set(rows[1]) and rows[0].tolist() == rows[2].tolist()

    def test_training_videos_without_any_label_are_refused(
        self, data: Dataset, shards: DataConfig, tmp_path: Path
    ) -> None:
        features = {"rgb": np.zeros(24, np.float32), "audio": np.zeros(8, np.float32)}
        writer = TFRecordWriter(str(tmp_path / "train.tfrecord"))
        for number in range(4):
            writer.write(
                {"id": (str(number).encode(), "byte"), **{name: (x, "float") for name, x in features.items()}}
                | {"labels": ([], "int")}
            )
        writer.close()
        with pytest.raises(DataError, match=r"data\.train: none of the 4 videos to learn from has a label"):
            open_dataset(replace(shards, train=str(tmp_path / "train.tfrecord")))
