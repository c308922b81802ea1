"""Small random features of videos, and statistics of them, for tests of models."""

import torch

from models import FeatureStatistics, Sizes

SIZES = Sizes(features={"mean_rgb": 24, "mean_audio": 8}, num_classes=11)


def statistics(sizes=SIZES):
    generator = torch.Generator().manual_seed(7)
    return FeatureStatistics(
        num_videos=100,
        mean_D=torch.randn(sizes.width, generator=generator),
        variance_D=torch.rand(sizes.width, generator=generator) + 0.1,
        label_counts_C=torch.randint(0, 101, (sizes.num_classes,), generator=generator),
    )


def features(num_videos=6, seed=3):
    return torch.randn(num_videos, SIZES.width, generator=torch.Generator().manual_seed(seed))
