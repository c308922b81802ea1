"""Sample shards of a few hundred videos, for tests that train in a second."""

from pathlib import Path
from typing import Any

from data.sample import write_splits
from tuner.training.data_config import DataConfig

FEATURES = {"rgb": 24, "audio": 8}
NUM_CLASSES = 12


def small_data(folder: Path, train: int, **settings: Any) -> DataConfig:
    """Write `train` training and 90 validation videos into a folder; returns how they are read."""
    write_splits(
        folder / "shards",
        num_videos={"train": train, "validate": 90},
        num_shards=2,
        num_classes=NUM_CLASSES,
        features=FEATURES,
    )
    return DataConfig(
        train=f"{folder}/shards/train*",
        validate=f"{folder}/shards/validate*",
        features=FEATURES,
        num_classes=NUM_CLASSES,
        cache_folder=str(folder / "cache"),
        **settings,
    )
