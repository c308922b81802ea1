"""`data.cache`: trials on features that a node keeps, that the workers share, or that are read in every epoch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tests.support.ranked as ranked
from data.cache.recipe import find_shards
from data.cache.store import open_cache
from data.errors import NoShardsError
from data.sample import write_shards, write_splits
from models import FusedMLPConfig
from models.frame.average_logistic import AverageLogisticConfig
from models.losses import LossConfig
from models.optim import OptimizerConfig
from models.video.linear import LinearConfig
from tests.conftest import SHARED_DATA
from tests.support.ranked import Group
from tests.support.small_data import FEATURES
from tuner.training.config import (
    ContrastiveConfig,
    PhasesConfig,
    PretrainConfig,
    ProbeConfig,
    TrainingConfig,
    TrialConfig,
)
from tuner.training.data_config import DataConfig
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train
from tuner.training.ranks import ALONE, Ranks

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TIMES = ("seconds", "videos_per_second")
ADAM = OptimizerConfig(kind="adam", learning_rate=0.01)
ALL = 100_000  # a buffer of all videos


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """300 training videos in five shards and 90 validation videos in three."""
    folder = tmp_path_factory.mktemp("modes")
    for split, num_videos, num_shards in (("train", 300, 5), ("validate", 90, 3)):
        write_shards(
            folder,
            num_videos=num_videos,
            num_shards=num_shards,
            num_classes=12,
            seed=1,
            features=FEATURES,
            prefix=split,
        )
    return DataConfig(
        train=f"{folder}/train*",
        validate=f"{folder}/validate*",
        features=FEATURES,
        num_classes=12,
        cache_folder=str(folder / "cache"),
    )


@pytest.fixture(scope="module")
def of_frames(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("frames")
    features = {"rgb": 12, "audio": 4}
    sizes = {"train": 120, "validate": 40}
    write_splits(folder, num_videos=sizes, num_shards=3, num_classes=7, features=features, level="frame", num_frames=9)
    return DataConfig(
        train=f"{folder}/train*",
        validate=f"{folder}/validate*",
        level="frame",
        features=features,
        num_classes=7,
        cache_folder=str(folder / "cache"),
    )


def none(config: DataConfig, buffer: int) -> DataConfig:
    return replace(config, cache="none", buffer=buffer)


def supervised(**settings: Any) -> TrialConfig:
    return TrialConfig(
        model=FusedMLPConfig(towers={"rgb": 12, "audio": 6}, hidden=16, dropout=0.3),
        optimizer=ADAM,
        loss=LossConfig(pos_weight_power=0.25, bootstrap="fixed"),
        training=TrainingConfig(batch_size=32, epochs=3, precision="fp32", **settings),
    )


def closed_form() -> TrialConfig:
    return TrialConfig(model=LinearConfig(), training=TrainingConfig(precision="fp32"))


def frames() -> TrialConfig:
    training = TrainingConfig(batch_size=16, epochs=2, precision="fp32")
    return TrialConfig(model=AverageLogisticConfig(), optimizer=ADAM, training=training)


def contrastive() -> ContrastiveConfig:
    return ContrastiveConfig(
        model=FusedMLPConfig(towers={"rgb": 16, "audio": 8}, hidden=16, dropout=0.1),
        pretrain=PretrainConfig(
            kind="moco_v2", queue=64, dimension=16, optimizer=ADAM, batch_size=64, epochs=2, batch_norm_groups=4
        ),
        probe=ProbeConfig(optimizer=ADAM, batch_size=16, epochs=2),
        training=PhasesConfig(precision="fp32"),
    )


def epochs(config: Any, data: DataConfig, ranks: Ranks = ALONE) -> list[dict[str, float]]:
    told = train(config, open_dataset(data), device=CPU, seed=3)
    return [{key: value for key, value in one.metrics.items() if key not in TIMES} for one in told]


@pytest.mark.parametrize("config", [supervised(), closed_form(), contrastive()], ids=["steps", "linear", "contrastive"])
def test_a_buffer_of_all_videos_gives_the_numbers_of_a_cache(node: DataConfig, config: Any) -> None:
    assert epochs(config, none(node, ALL)) == epochs(config, node)


def test_models_of_frames_train_without_a_cache_of_features(of_frames: DataConfig) -> None:
    assert epochs(frames(), none(of_frames, ALL)) == epochs(frames(), of_frames)
    shuffled = epochs(frames(), none(of_frames, 20))
    assert len(shuffled) == 2 and shuffled != epochs(frames(), of_frames)
    assert not list(Path(str(of_frames.cache_folder)).parent.rglob("none/features.npy"))


def test_a_part_of_the_labels_and_of_the_validation_is_the_same_part(node: DataConfig) -> None:
    part = replace(node, label_fraction=0.3, validate_fraction=0.4)
    assert epochs(supervised(), none(part, ALL)) == epochs(supervised(), part)


def test_a_trial_without_a_cache_of_features_resumes_to_the_same_numbers(node: DataConfig, tmp_path: Path) -> None:
    data, config = open_dataset(none(node, 40)), supervised()
    whole = []
    for progress in train(config, data, device=CPU, seed=3):
        whole.append(progress.metrics["loss_train"])
        if progress.epoch == 1:
            progress.state.save(tmp_path / "one", config)
    again = train(config, open_dataset(none(node, 40)), device=CPU, seed=3, resume_from=tmp_path / "one")
    assert [progress.metrics["loss_train"] for progress in again] == whole


@pytest.mark.skipif(not (SHARED_DATA / "yt8m").is_dir(), reason="the real shards are not on this machine")
@pytest.mark.slow
def test_real_shards_give_the_same_gap_to_the_noise_of_a_seed(tmp_path: Path) -> None:
    real = DataConfig(
        train=f"{SHARED_DATA}/yt8m/train/*",
        validate=f"{SHARED_DATA}/yt8m/validate/*",
        cache_folder=str(tmp_path / "cache"),
    )
    config = TrialConfig(
        model=FusedMLPConfig(towers={"mean_rgb": 256, "mean_audio": 64}, hidden=256),
        optimizer=OptimizerConfig(kind="adam", learning_rate=1e-3),
        training=TrainingConfig(batch_size=256, epochs=3),
    )

    def gap(data: DataConfig, seed: int) -> float:
        *_, last = train(config, open_dataset(data), device=CPU, seed=seed)
        return last.metrics["gap"]

    kept = [gap(real, seed) for seed in (1, 2)]
    streamed = gap(none(real, 2000), 1)
    assert kept[0] > 0.5 and abs(streamed - kept[0]) < max(3 * abs(kept[0] - kept[1]), 0.005)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    processes = Group(2)
    yield processes
    processes.end()


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("cache", ["share", "none"])
def test_two_ranks_see_each_video_once_and_know_the_whole(group: Group, node: DataConfig, cache: Any) -> None:
    whole = open_dataset(node)
    config = replace(
        node, cache=cache, cache_folder=f"{node.cache_folder}-{cache}", buffer=30 if cache == "none" else None
    )
    first, second = group.run(2, ranked.shared, config)
    for one in (first, second):
        assert one["fingerprint"] == whole.fingerprint
        assert one["ids"].tolist() == whole.ids.tolist()
        assert torch.equal(one["counts"], whole.statistics.label_counts_C)
        np.testing.assert_allclose(one["mean"], whole.statistics.mean_D, rtol=1e-6)
    of_video = 32 * 2
    assert [one["bytes"] // of_video for one in (first, second)] == ([180, 120] if cache == "share" else [0, 0])
    for (left, left_features), (right, right_features) in zip(first["epochs"], second["epochs"], strict=True):
        rows = torch.cat([left, right])
        assert len(rows.unique()) == len(rows) == 7 * 32  # of the 120 videos of the second rank 16 make a batch
        features = torch.cat(left_features + right_features)
        np.testing.assert_array_equal(features.numpy(), whole.train.features_ND[rows.numpy()])
    assert torch.cat(first["scored"] + second["scored"]).tolist() == list(range(90))


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_ranks_that_share_a_cache_give_the_numbers_of_two_that_keep_none(group: Group, node: DataConfig) -> None:
    share = replace(node, cache="share")
    (kept, weights), (kept_too, _) = group.run(2, ranked.train_trial, supervised(), share)
    (streamed, others), _ = group.run(2, ranked.train_trial, supervised(), none(node, ALL))
    assert kept == kept_too == streamed
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    alone = epochs(supervised(), node)  # other batches of the same videos
    assert kept[-1]["gap"] == pytest.approx(alone[-1]["gap"], abs=0.1)


def test_a_worker_without_a_shard_is_told(node: DataConfig) -> None:
    message = r"validate\*: data.cache: none needs a shard for each of 4 workers, but there are 3; use fewer workers"
    with pytest.raises(NoShardsError, match=message):
        open_dataset(none(node, 10), ranks=Ranks(rank=0, size=4))


def test_the_labels_of_a_cache_of_everything_are_not_taken_for_one_without_features(node: DataConfig) -> None:
    shards = find_shards(node.train)
    open_cache(shards, node.schema, node.cache_directory)
    known = open_dataset(none(node, 10), fingerprint=open_dataset(node).fingerprint)
    assert known.train.stream is not None and known.train.features_ND.shape == (0, 32)
