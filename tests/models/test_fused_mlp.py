"""The fused MLP and the logistic regression against their definitions."""

import dataclasses

import pytest
import torch

import models
from models import FusedMLPConfig, LogisticConfig, Sizes
from models.layers import prior_log_odds
from tests.support.video_features import SIZES, features, statistics

YT8M = Sizes(features={"mean_rgb": 1024, "mean_audio": 128}, num_classes=3862)
SMALL = FusedMLPConfig(towers={"mean_rgb": 16, "mean_audio": 6}, hidden=10, dropout=0.3)


def build(config=SMALL, seed=0):
    return models.build(config, SIZES, statistics(), torch.Generator().manual_seed(seed))


def published(num_classes=3862, **settings):
    sizes = dataclasses.replace(YT8M, num_classes=num_classes)
    config = FusedMLPConfig(towers={"mean_rgb": 2048, "mean_audio": 256}, **settings)
    return models.build(config, sizes, statistics(sizes), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("num_classes", "expected"), [(3862, 9_543_494), (4716, 10_569_148)])
def test_fused_mlp_has_the_published_number_of_parameters(num_classes, expected):
    assert sum(p.numel() for p in published(num_classes).parameters()) == expected


def test_fused_mlp_starts_as_published():
    model = published(prior_bias=False)
    assert [tuple(w.shape) for w in model.regularized] == [(2048, 1024), (256, 128), (1200, 2304), (3862, 1200)]
    for weight in model.regularized:
        std = weight.shape[1] ** -0.5
        assert weight.abs().max() <= 2 * std
        assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.01)  # of a normal cut at 2 std
        assert abs(weight.mean().item()) < 0.02 * std
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    gammas = [m.weight for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(biases) == 4 + 3 and not any(bias.any() for bias in biases)
    assert len(gammas) == 3 and all((gamma == 1).all() for gamma in gammas)


def test_fused_mlp_starts_at_the_label_prior():
    model = build()
    assert torch.equal(model.head.bias, prior_log_odds(statistics()))


def test_fused_mlp_is_what_its_docstring_says():
    """In evaluation, computed step by step in float64."""
    model = build()
    model(3 * features(32))  # gives running statistics that are not the initial ones
    model.eval()
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def block(prefix, x):
        x = x @ state[f"{prefix}.linear.weight"].T + state[f"{prefix}.linear.bias"]
        mean, variance = state[f"{prefix}.norm.running_mean"], state[f"{prefix}.norm.running_var"]
        return torch.tanh((x - mean) / (variance + 1e-5).sqrt() * state[f"{prefix}.norm.weight"])

    stats = statistics()
    x = (features().double() - stats.mean_D) / stats.variance_D.double().sqrt()
    towers = torch.cat([block("encoder.towers.0", x[:, :24]), block("encoder.towers.1", x[:, 24:])], dim=1)
    expected = block("encoder.joint", towers) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(model(features()).double(), expected, rtol=1e-5, atol=1e-5)


def test_towers_follow_the_order_of_the_data_not_of_the_configuration():
    swapped = FusedMLPConfig(towers={"mean_audio": 6, "mean_rgb": 16}, hidden=10, dropout=0.3)
    model = models.build(swapped, SIZES, statistics(), torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(features()), build().eval()(features()))


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"mean_rgb": 4}, r"\(mean_rgb, mean_audio\), but mean_audio is missing"),
        ({"mean_rgb": 4, "mean_audio": 4, "rgb": 4}, "but rgb is not a feature"),
        ({"mean_rgb": 4, "audio": 4}, "but mean_audio is missing and audio is not a feature"),
    ],
)
def test_towers_that_are_not_the_datas_features_are_refused(towers, message):
    with pytest.raises(ValueError, match=message):
        models.build(FusedMLPConfig(towers=towers), SIZES, statistics())


def test_batch_norm_settings_reach_every_layer():
    model = models.build(
        FusedMLPConfig(towers=SMALL.towers, batch_norm_momentum=0.001, batch_norm_epsilon=1e-3),
        SIZES,
        statistics(),
    )
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [(norm.momentum, norm.eps) for norm in norms] == [(0.001, 1e-3)] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), but got 1.0"),
        ({"hidden": 0}, "hidden must be from 1 to 16,777,216, but got 0"),
        ({"batch_norm_momentum": 0.0}, r"batch_norm_momentum must be in \(0, 1\], but got 0.0"),
        ({"batch_norm_epsilon": 0.0}, r"batch_norm_epsilon must be from 1e-30 to 1e\+06, but got 0.0"),
        ({"towers": {"mean_rgb": 0}}, "towers.mean_rgb must be from 1 to 16,777,216, but got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FusedMLPConfig(**{"towers": {"mean_rgb": 1}} | settings)


class TestVariancePower:
    def encoder(self, power):
        config = FusedMLPConfig(towers={"mean_rgb": 16, "mean_audio": 6}, hidden=10, variance_power=power)
        return models.build(config, SIZES, statistics(), torch.Generator().manual_seed(0)).encoder

    def test_zero_leaves_every_column_as_it_is(self):
        assert torch.equal(self.encoder(0.0).emphasis_D, torch.ones(32))

    def test_columns_count_by_their_deviation_to_the_power(self):
        deviation = statistics().variance_D.double().sqrt()
        for part in (slice(0, 24), slice(24, 32)):
            expected = deviation[part] ** 1.5
            expected /= (expected**2).mean().sqrt()
            torch.testing.assert_close(self.encoder(1.5).emphasis_D[part].double(), expected, rtol=1e-5, atol=0)

    def test_power_one_is_centring_but_for_a_factor_for_each_feature(self):
        encoder, stats = self.encoder(1.0), statistics()
        seen = encoder.normalize(features()) * encoder.emphasis_D
        centred = features() - stats.mean_D
        for part in (slice(0, 24), slice(24, 32)):
            ratio = seen[:, part] / centred[:, part]
            torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=0)

    def test_a_negative_one_is_refused(self):
        with pytest.raises(ValueError, match="variance_power must be from 0 to 4, but got -1"):
            FusedMLPConfig(towers={"mean_rgb": 16}, variance_power=-1)


def test_logistic_is_one_linear_layer_on_raw_features():
    model = build(LogisticConfig())
    weight, bias = model.folded()
    torch.testing.assert_close(model(features()), features() @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_logistic_takes_the_weights_that_it_folds_to():
    model, other = build(LogisticConfig()), build(LogisticConfig(), seed=1)
    other.unfold(*model.folded())
    torch.testing.assert_close(other(features()), model(features()), rtol=1e-4, atol=1e-4)
