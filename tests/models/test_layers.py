"""Layers that models share: normalisation, priors, dropout, initialisation, BatchNorm in groups; and sizes."""

import numpy as np
import pytest
import torch

import models
from models import FeatureStatistics, LogisticConfig, Sizes
from models.layers import BatchNorm, Dropout, Normalize, linear, prior_log_odds
from models.video.mixture_of_experts import MixtureOfExpertsConfig


def counted(labels, *, num_videos, rated=None):
    """Statistics with these counts, of two columns."""
    return FeatureStatistics(
        num_videos=num_videos,
        mean_D=torch.zeros(2),
        variance_D=torch.ones(2),
        label_counts_C=torch.tensor(labels),
        rated_counts_C=None if rated is None else torch.tensor(rated),
    )


@pytest.mark.parametrize(("widths", "num_classes"), [({}, 3), ({"a": 0}, 3), ({"a": 1}, 0)])
def test_sizes_without_features_or_classes_are_refused(widths, num_classes):
    with pytest.raises(ValueError, match="but got"):
        Sizes(features=widths, num_classes=num_classes)


def test_normalized_features_have_mean_zero_and_variance_one():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 30.0]) + 5
    y = Normalize(x.mean(dim=0), x.var(dim=0, correction=0))(x)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.var(dim=0, correction=0), torch.ones(3), rtol=1e-4, atol=0)


def test_a_feature_without_variance_is_only_centred():
    y = Normalize(np.array([2.0, 0.0]), np.array([0.0, 4.0]))(torch.tensor([[2.0, 2.0], [3.0, -2.0]]))
    assert y.tolist() == [[0.0, 1.0], [1.0, -1.0]]


def test_half_precision_features_are_centred_in_float32():
    """In float16, 2047.9 and 2048 are equal, and so their difference would be 0."""
    y = Normalize(torch.tensor([2047.9]), torch.tensor([1.0]))(torch.tensor([[2048.0]], dtype=torch.float16))
    assert y.dtype == torch.float32 and y.item() == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("mean", "variance"), [([0.0, 0.0], [1.0]), ([np.nan], [1.0]), ([0.0], [-1.0]), ([0.0], [np.inf])]
)
def test_statistics_that_cannot_be_are_refused(mean, variance):
    with pytest.raises(ValueError, match="mean and variance must be"):
        Normalize(np.array(mean), np.array(variance))


def test_prior_log_odds_are_finite_for_classes_without_positives_or_negatives():
    odds = prior_log_odds(counted([0, 50, 100], num_videos=100))
    expected = [np.log(0.5 / 100.5), 0.0, np.log(100.5 / 0.5)]
    assert odds.dtype == torch.float32 and odds.tolist() == pytest.approx(expected)


def test_more_positives_than_videos_are_refused():
    with pytest.raises(ValueError, match="class 1 is a label of 11 videos, of 10 that could have it"):
        prior_log_odds(counted([3, 11], num_videos=10))
    with pytest.raises(ValueError, match="class 0 is a label of 3 videos, of 2 that could have it"):
        prior_log_odds(counted([3, 1], num_videos=10, rated=[2, 1]))


def test_the_prior_of_a_class_is_that_of_the_videos_it_is_rated_for():
    """2 of 4 are even odds, 0 of 2 are not; a class that is never rated counts as 0 of all 10, below both."""
    statistics = counted([2, 0, 0], num_videos=10, rated=[4, 2, 0])
    expected = torch.tensor([0, np.log(0.5 / 2.5), np.log(0.5 / 10.5)], dtype=torch.float32)
    torch.testing.assert_close(prior_log_odds(statistics), expected)
    sizes = Sizes(features={"a": 2}, num_classes=3)
    torch.testing.assert_close(models.build(LogisticConfig(), sizes, statistics).head.bias.detach(), expected)
    mixture = models.build(MixtureOfExpertsConfig(), sizes, statistics).eval()
    torch.testing.assert_close(mixture(torch.zeros(1, 2))[0].detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert y.float().mean().item() == pytest.approx(1, abs=0.03)
    y.float().sum().backward()
    assert torch.equal(x.grad, y)  # the same units, the same scale


def test_dropout_follows_the_global_seed_and_is_off_in_evaluation():
    x = torch.ones(10, 10)
    dropout = Dropout(0.5)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first) and not torch.equal(dropout(x), first)
    assert torch.equal(dropout.eval()(x), x)


def test_values_beyond_two_standard_deviations_are_drawn_again_not_cut():
    weight = linear(100, 10_000, torch.Generator().manual_seed(0)).weight
    assert (weight.abs() > 0.1999).float().mean() < 1e-3  # clipping would leave 5 % there


class TestGroupedBatchNorm:
    def test_each_group_has_statistics_of_its_own(self):
        norm = BatchNorm(5)
        norm.groups = 4
        x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1
        found = norm(x)
        for group in range(4):
            rows = x[group::4]
            expected = (rows - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + norm.eps).sqrt()
            torch.testing.assert_close(found[group::4], expected)

    def test_running_statistics_move_once_by_the_mean_over_the_groups(self):
        norm = BatchNorm(5)
        norm.groups = 4
        x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1
        norm(x)
        means = torch.stack([x[group::4].mean(dim=0) for group in range(4)])
        variances = torch.stack([x[group::4].var(dim=0) for group in range(4)])
        torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(dim=0))
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances.mean(dim=0))
        assert norm.num_batches_tracked == 1

    def test_without_groups_it_is_torchs(self):
        ours, theirs = BatchNorm(5), torch.nn.BatchNorm1d(5)
        x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
        assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.running_var, theirs.running_var)

    def test_in_evaluation_there_are_no_groups(self):
        norm = BatchNorm(5).eval()
        norm.groups = 4
        assert norm(torch.randn(3, 5)).shape == (3, 5)

    @pytest.mark.parametrize("batch", [22, 4])
    def test_a_batch_without_equal_groups_is_refused(self, batch):
        norm = BatchNorm(5)
        norm.groups = 4
        with pytest.raises(ValueError, match=f"a batch of {batch} rows has no 4 equal groups"):
            norm(torch.randn(batch, 5))
