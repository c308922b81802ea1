"""The linear classifier as a trial: fitted in closed form, one epoch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.sample import write_splits
from models import LinearConfig, LogisticConfig
from models.losses import LossConfig
from models.optim import OptimizerConfig
from tuner.errors import ConfigError
from tuner.training.config import TrialConfig
from tuner.training.data_config import DataConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.pipelines import train
from tuner.training.ranks import Ranks
from tuner.training.state import Progress

CPU = torch.device("cpu")
TRIAL = TrialConfig(model=LinearConfig(penalty=0.3), optimizer=OptimizerConfig(kind="adam", learning_rate=1e-3))
FEATURES = {"rgb": 12, "audio": 4}


@pytest.fixture(scope="module", params=["video", "frame"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("linear")
    counts = {"train": 200, "validate": 60}
    write_splits(folder, num_videos=counts, num_shards=1, num_classes=5, features=FEATURES, level=request.param)
    return open_dataset(
        DataConfig(
            train=f"{folder}/train*",
            validate=f"{folder}/validate*",
            features=FEATURES,
            num_classes=5,
            level=request.param,
            dtype="float32",
            cache_folder=str(folder / "cache"),
        )
    )


def fitted(data: Dataset, **settings: float) -> Progress:
    trial = replace(TRIAL, model=replace(TRIAL.model, **settings))
    (progress,) = train(trial, data, device=CPU, seed=1)
    return progress


def test_the_classifier_equals_ridge_regression_of_the_labels(data: Dataset) -> None:
    """The logits are the solution of numpy, times one slope and plus one shift, which turn scores into logits."""
    model = fitted(data).state.scored.eval()  # type: ignore[attr-defined]
    (batch,) = data.labelled_batches(1000, CPU).epoch(0)
    x = batch.features_BD if data.sizes.level == "video" else None
    if x is None:
        frames_BTD, mask_BT = batch.inputs
        videos = zip(frames_BTD, mask_BT, strict=True)
        x = torch.stack([(video[mask].double() * 4 / 255 + 4 / 512 - 2).mean(dim=0) for video, mask in videos])
    statistics = data.statistics
    x = ((x.double() - statistics.mean_D) / statistics.variance_D.double().sqrt()).numpy()
    y = np.zeros((len(x), 5))
    y[np.repeat(np.arange(len(x)), batch.label_offsets.diff()), batch.label_indices] = 1
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred
    weights = np.linalg.solve(
        gram + 0.3 * np.trace(gram) / len(gram) * np.eye(len(gram)), centred.T @ (y - y.mean(axis=0))
    )
    scores = y.mean(axis=0) + centred @ weights
    with torch.no_grad():
        logits = model(*batch.inputs).double().numpy()
    slope, shift = np.polyfit(scores.reshape(-1), logits.reshape(-1), 1)
    assert slope > 0
    np.testing.assert_allclose(logits, slope * scores + shift, atol=2e-3)


def test_the_trial_ends_after_one_epoch_and_is_better_than_chance(data: Dataset) -> None:
    progress = fitted(data)
    assert TRIAL.epochs == progress.epoch == 1
    assert progress.metrics["gap"] == progress.metrics["gap_best"] > 0.5
    assert progress.metrics["loss_validate"] < 5 * np.log(2)  # its scores were made logits


def test_another_penalty_gives_another_gap(data: Dataset) -> None:
    small, large = fitted(data, penalty=1e-3), fitted(data, penalty=1e3)
    assert small.metrics["gap"] != large.metrics["gap"]


@pytest.mark.parametrize("optimizer", [TRIAL.optimizer, None])
def test_a_resume_from_the_checkpoint_repeats_the_metrics(
    data: Dataset, tmp_path: Path, optimizer: OptimizerConfig | None
) -> None:
    trial = replace(TRIAL, optimizer=optimizer)
    (progress,) = train(trial, data, device=CPU, seed=1)
    progress.state.save(tmp_path / "epoch-1", trial)
    (again,) = train(trial, data, device=CPU, seed=1, resume_from=tmp_path / "epoch-1")
    assert again.repeated and again.metrics == progress.metrics


def test_every_other_model_needs_an_optimizer() -> None:
    with pytest.raises(ValueError, match=r"optimizer is missing; model\.kind logistic needs one"):
        replace(TRIAL, model=LogisticConfig(), optimizer=None)


def test_settings_without_effect_and_out_of_range_are_refused(data: Dataset) -> None:
    with pytest.raises(ValueError, match="loss has no effect on model"):
        replace(TRIAL, loss=LossConfig(l2=1.0))
    with pytest.raises(ConfigError, match="linear trains on one worker, but got 2"):
        train(TRIAL, data, device=CPU, seed=1, ranks=Ranks(rank=0, size=2))
    with pytest.raises(ValueError, match="penalty must be from 1e-12 to 1e\\+12, but got 0"):
        LinearConfig(penalty=0)
