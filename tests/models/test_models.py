"""What every model promises, and what the fused MLP is."""

import dataclasses
import io

import numpy as np
import pytest
import torch

import models
from models import FeatureStatistics, FusedMLPConfig, LinearConfig, LogisticConfig, Sizes
from models.frame.attention import AttentionConfig
from models.frame.average_logistic import AverageLogisticConfig
from models.frame.dbof import DbofConfig
from models.frame.gated_dbof import GatedDbofConfig
from models.frame.gru import GruConfig
from models.frame.lstm import LstmConfig
from models.frame.netfv import NetFvConfig
from models.frame.netrvlad import NetRVladConfig
from models.frame.netvlad import NetVladConfig
from models.frame.nextvlad import NeXtVladConfig
from models.frame.parts.heads import HeadConfig
from models.frame.soft_dbof import SoftDbofConfig
from models.layers import BatchNorm, Dropout, Normalize, linear, prior_log_odds
from models.losses import sigmoid_cross_entropy
from models.video.mixture_of_experts import MixtureOfExpertsConfig

SIZES = Sizes(features={"mean_rgb": 24, "mean_audio": 8}, num_classes=11)
FRAMES = Sizes(features={"rgb": 24, "audio": 8}, num_classes=11, level="frame")
YT8M = Sizes(features={"mean_rgb": 1024, "mean_audio": 128}, num_classes=3862)
CLUSTERS = {"rgb": 5, "audio": 3}
SMALL = {  # one small configuration of every kind
    "fused_mlp": FusedMLPConfig(towers={"mean_rgb": 16, "mean_audio": 6}, hidden=10, dropout=0.3),
    "logistic": LogisticConfig(),
    "linear": LinearConfig(),
    "mixture_of_experts": MixtureOfExpertsConfig(low_rank=4, probability_gating="probabilities"),
    "average_logistic": AverageLogisticConfig(normalize="standard"),
    "dbof": DbofConfig(clusters=12, hidden=10),
    "soft_dbof": SoftDbofConfig(clusters=CLUSTERS, hidden=10, maximum=True, relu=True),
    "gated_dbof": GatedDbofConfig(clusters=CLUSTERS, hidden=10, head=HeadConfig(kind="logistic")),
    "lstm": LstmConfig(normalize="standard", cells=6, reverse=True),
    "gru": GruConfig(normalize="standard", cells=6),
    "netvlad": NetVladConfig(clusters=CLUSTERS, hidden=10, context_gating=True),
    "netrvlad": NetRVladConfig(clusters=CLUSTERS, hidden=10, batch_norm=False),
    "netfv": NetFvConfig(clusters=CLUSTERS, hidden=10, head=HeadConfig(probability_gating="inputs")),
    "nextvlad": NeXtVladConfig(clusters=CLUSTERS, groups={"rgb": 4, "audio": 2}, hidden=16, dropout=0.1),
    "attention": AttentionConfig(heads=2, units=5, hidden=10),
}


def statistics(sizes=SIZES):
    generator = torch.Generator().manual_seed(7)
    return FeatureStatistics(
        num_videos=100,
        mean_D=torch.randn(sizes.width, generator=generator),
        variance_D=torch.rand(sizes.width, generator=generator) + 0.1,
        label_counts_C=torch.randint(0, 101, (sizes.num_classes,), generator=generator),
    )


def counted(labels, *, num_videos, rated=None):
    """Statistics of two columns, by their counts."""
    return FeatureStatistics(
        num_videos=num_videos,
        mean_D=torch.zeros(2),
        variance_D=torch.ones(2),
        label_counts_C=torch.tensor(labels),
        rated_counts_C=None if rated is None else torch.tensor(rated),
    )


def build(kind, seed=0):
    return models.build(SMALL[kind], sizes_of(kind), statistics(), torch.Generator().manual_seed(seed))


def sizes_of(kind):
    return {"video": SIZES, "frame": FRAMES}[models.CONFIGS[kind].level]


def features(num_videos=6, seed=3):
    return torch.randn(num_videos, SIZES.width, generator=torch.Generator().manual_seed(seed))


def frames(num_videos=6, num_frames=7, seed=3):
    """Bytes [B, T, D], and a mask that leaves each video between one frame and all of them."""
    generator = torch.Generator().manual_seed(seed)
    frames_BTD = torch.randint(0, 256, (num_videos, num_frames, FRAMES.width), generator=generator, dtype=torch.uint8)
    lengths_B = torch.randint(1, num_frames + 1, (num_videos,), generator=generator)
    lengths_B[0] = num_frames
    mask_BT = torch.arange(num_frames) < lengths_B[:, None]
    return frames_BTD * mask_BT[..., None], mask_BT


def inputs(kind, num_videos=6, seed=3):
    """What a model of this kind takes."""
    if models.CONFIGS[kind].level == "frame":
        return frames(num_videos, seed=seed)
    return (features(num_videos, seed),)


def labels(num_videos=6):
    """Video b carries class b."""
    return torch.arange(num_videos + 1), torch.arange(num_videos)


def test_every_kind_has_a_configuration_that_is_tested():
    assert SMALL.keys() == models.CONFIGS.keys()
    assert all(type(config) is models.CONFIGS[kind] and config.kind == kind for kind, config in SMALL.items())


@pytest.mark.parametrize("kind", models.CONFIGS)
class TestEveryModel:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_gives_one_float32_logit_per_class(self, kind, dtype):
        logits = build(kind)(*(x.to(dtype) if x.is_floating_point() else x for x in inputs(kind)))
        assert logits.shape == (6, SIZES.num_classes) and logits.dtype == torch.float32

    def test_every_trainable_weight_gets_a_gradient(self, kind):
        model = build(kind)
        sigmoid_cross_entropy(model(*inputs(kind)), *labels()).backward()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None and parameter.grad.any(), f"no gradient for {name}"

    def test_state_survives_save_and_load_bit_for_bit(self, kind):
        model, other = build(kind), build(kind, seed=1)
        model(*inputs(kind))  # moves the running statistics
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(model.eval()(*inputs(kind)), other.eval()(*inputs(kind)))

    def test_same_seed_same_weights(self, kind):
        first, second, third = build(kind), build(kind), build(kind, seed=1)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert not all(torch.equal(a, b) for a, b in zip(first.regularized, third.regularized, strict=True))

    def test_the_global_seed_decides_without_a_generator(self, kind):
        torch.manual_seed(5)
        first = models.build(SMALL[kind], sizes_of(kind), statistics())
        torch.manual_seed(5)
        second = models.build(SMALL[kind], sizes_of(kind), statistics())
        assert all(torch.equal(a, b) for a, b in zip(first.regularized, second.regularized, strict=True))

    def test_a_generator_leaves_the_global_seed_alone(self, kind):
        before = torch.random.get_rng_state()
        build(kind)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_l1_and_l2_fall_on_the_weight_matrices_alone(self, kind):
        model = build(kind)
        matrices = {id(p) for p in model.parameters() if p.ndim == 2}
        assert {id(p) for p in model.regularized} == matrices

    def test_in_evaluation_a_video_does_not_depend_on_its_neighbours(self, kind):
        model = build(kind).eval()
        torch.testing.assert_close(model(*inputs(kind))[:2], model(*(x[:2] for x in inputs(kind))))

    def test_learns_a_batch_by_heart(self, kind):
        torch.manual_seed(0)
        model = build(kind)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        history = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = sigmoid_cross_entropy(model(*inputs(kind)), *labels())
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        assert history[-1] < history[0] / 4

    def test_bf16_autocast_stays_near_float32(self, kind):
        model = build(kind).eval()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(*inputs(kind))
        torch.testing.assert_close(logits.float(), model(*inputs(kind)), rtol=0.05, atol=0.1)

    def test_configuration_survives_asdict(self, kind):
        assert models.configured(dataclasses.asdict(SMALL[kind])) == SMALL[kind]

    def test_configuration_survives_asdict_through_pydantic(self, kind):
        pydantic = pytest.importorskip("pydantic")
        adapter = pydantic.TypeAdapter(models.CONFIGS[kind])
        assert adapter.validate_python(dataclasses.asdict(SMALL[kind])) == SMALL[kind]
        with pytest.raises(pydantic.ValidationError, match="no_such_setting"):
            adapter.validate_python(dataclasses.asdict(SMALL[kind]) | {"no_such_setting": 1})

    def test_arrays_do_as_well_as_tensors_for_statistics(self, kind):
        as_tensors = statistics()
        arrays = {name: getattr(as_tensors, name).numpy() for name in ("mean_D", "variance_D", "label_counts_C")}
        for array in arrays.values():
            array.flags.writeable = False  # as a memory map is
        model = models.build(
            SMALL[kind], sizes_of(kind), FeatureStatistics(num_videos=100, **arrays), torch.Generator().manual_seed(0)
        )
        assert torch.equal(model.eval()(*inputs(kind)), build(kind).eval()(*inputs(kind)))

    def test_statistics_of_another_size_are_refused(self, kind):
        other = dataclasses.replace(statistics(), label_counts_C=torch.zeros(12))
        with pytest.raises(ValueError, match=r"label_counts_C must have 11 values, but got the shape \(12,\)"):
            models.build(SMALL[kind], sizes_of(kind), other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.export
@pytest.mark.filterwarnings("ignore::FutureWarning")  # inside torch.export
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in ("lstm", "gru") else ()) for kind in models.CONFIGS]
)
@torch.no_grad()
def test_every_model_exports_with_any_number_of_videos(kind):
    model = build(kind).eval()
    batch = torch.export.Dim("batch", min=1)
    given = inputs(kind, num_videos=2)
    dynamic = {0: batch} if len(given) == 1 else {0: batch, 1: torch.export.Dim("frames", min=1)}
    program = torch.export.export(model, given, dynamic_shapes=tuple(dynamic for _ in given)).module()
    for num_videos in (1, 2, 50):
        given = inputs(kind, num_videos)
        torch.testing.assert_close(program(*given), model(*given))
        if len(given) == 2:
            short = tuple(x[:, :1] for x in given)
            torch.testing.assert_close(program(*short), model(*short))


@pytest.mark.parametrize("kind", [kind for kind, config in models.CONFIGS.items() if config.level == "frame"])
class TestEveryFrameModel:
    def test_padding_has_no_say_in_evaluation(self, kind):
        model = build(kind)
        model(*frames())  # running statistics that are not trivial
        model.eval()
        frames_BTD, mask_BT = frames()
        for filler in (0, 255):
            wider = torch.nn.functional.pad(frames_BTD, (0, 0, 0, 5), value=filler)
            torch.testing.assert_close(
                model(wider, torch.nn.functional.pad(mask_BT, (0, 5))), model(frames_BTD, mask_BT)
            )
            garbage = torch.where(mask_BT[..., None], frames_BTD, filler)
            torch.testing.assert_close(model(garbage, mask_BT), model(frames_BTD, mask_BT))

    def test_padding_has_no_say_in_training(self, kind):
        """Above all not in BatchNorm's statistics."""
        frames_BTD, mask_BT = frames()
        wider = torch.nn.functional.pad(frames_BTD, (0, 0, 0, 5)), torch.nn.functional.pad(mask_BT, (0, 5))
        first, second = build(kind), build(kind)
        torch.manual_seed(0)
        logits = first(frames_BTD, mask_BT)
        torch.manual_seed(0)
        torch.testing.assert_close(second(*wider), logits)
        for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")

    def test_the_same_frames_as_floats_give_the_same_logits(self, kind):
        model = build(kind).eval()
        frames_BTD, mask_BT = frames()
        floats_BTD = frames_BTD.double() * 4 / 255 + 4 / 512 - 2
        torch.testing.assert_close(model(floats_BTD.float(), mask_BT), model(frames_BTD, mask_BT))

    @pytest.mark.parametrize("num_frames", [1, 2])
    def test_short_videos_have_finite_gradients(self, kind, num_frames):
        model = build(kind)
        sigmoid_cross_entropy(model(*frames(num_frames=num_frames)), *labels()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    def test_a_video_without_frames_harms_nobody(self, kind):
        model = build(kind)
        frames_BTD, mask_BT = frames()
        mask_BT[3] = False
        logits = model(frames_BTD, mask_BT)
        sigmoid_cross_entropy(logits, *labels()).backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    def test_video_level_data_is_refused(self, kind):
        with pytest.raises(ValueError, match=f"{kind} takes frames, but the data has a row of features for each video"):
            models.build(SMALL[kind], SIZES, statistics())


@pytest.mark.parametrize("kind", [kind for kind, config in models.CONFIGS.items() if config.level == "video"])
def test_a_video_level_model_takes_the_mean_of_frames(kind):
    sizes = dataclasses.replace(SIZES, level="frame")
    model = models.build(SMALL[kind], sizes, statistics(), torch.Generator().manual_seed(0)).eval()
    frames_BTD, mask_BT = frames()
    means = [(video[mask].double() * 4 / 255 + 4 / 512 - 2).mean(dim=0) for video, mask in zip(*frames(), strict=True)]
    expected = build(kind).eval()(torch.stack(means).float())
    torch.testing.assert_close(model(frames_BTD, mask_BT), expected, rtol=1e-4, atol=1e-5)
    assert [w.shape for w in model.regularized] == [w.shape for w in build(kind).regularized]


# The fused MLP


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


def test_values_beyond_two_standard_deviations_are_drawn_again_not_cut():
    weight = linear(100, 10_000, torch.Generator().manual_seed(0)).weight
    assert (weight.abs() > 0.1999).float().mean() < 1e-3  # cutting would heap 5 % there


def test_fused_mlp_starts_at_the_label_prior():
    model = build("fused_mlp")
    assert torch.equal(model.head.bias, prior_log_odds(statistics()))


def test_fused_mlp_is_what_its_docstring_says():
    """By hand, in evaluation, in float64 arithmetic."""
    model = build("fused_mlp")
    model(3 * features(32))  # running statistics that are not trivial
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
    assert torch.equal(model.eval()(features()), build("fused_mlp").eval()(features()))


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
        FusedMLPConfig(towers=SMALL["fused_mlp"].towers, batch_norm_momentum=0.001, batch_norm_epsilon=1e-3),
        SIZES,
        statistics(),
    )
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [(norm.momentum, norm.eps) for norm in norms] == [(0.001, 1e-3)] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), but got 1.0"),
        ({"hidden": 0}, "hidden must be at least 1, but got 0"),
        ({"batch_norm_momentum": 0.0}, r"batch_norm_momentum must be in \(0, 1\], but got 0.0"),
        ({"batch_norm_epsilon": 0.0}, "batch_norm_epsilon must be positive, but got 0.0"),
        ({"towers": {"mean_rgb": 0}}, "towers.mean_rgb must be at least 1, but got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FusedMLPConfig(**{"towers": {"mean_rgb": 1}} | settings)


@pytest.mark.parametrize(("widths", "num_classes"), [({}, 3), ({"a": 0}, 3), ({"a": 1}, 0)])
def test_sizes_without_features_or_classes_are_refused(widths, num_classes):
    with pytest.raises(ValueError, match="but got"):
        Sizes(features=widths, num_classes=num_classes)


# Layers


def test_normalized_features_have_mean_zero_and_variance_one():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 30.0]) + 5
    y = Normalize(x.mean(dim=0), x.var(dim=0, correction=0))(x)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.var(dim=0, correction=0), torch.ones(3), rtol=1e-4, atol=0)


def test_a_feature_without_variance_is_only_centred():
    y = Normalize(np.array([2.0, 0.0]), np.array([0.0, 4.0]))(torch.tensor([[2.0, 2.0], [3.0, -2.0]]))
    assert y.tolist() == [[0.0, 1.0], [1.0, -1.0]]


def test_half_precision_features_are_centred_in_float32():
    """2048 and 2049 are one number in float16; so would be their distance from a mean of 2048.5."""
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
    """2 of 4 are even odds, 0 of 2 are not; a class that nobody rated is below both, as 0 of all 10."""
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
        with pytest.raises(ValueError, match="variance_power must be finite and not negative, but got -1"):
            FusedMLPConfig(towers={"mean_rgb": 16}, variance_power=-1)


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


def test_logistic_is_one_linear_layer_on_raw_features():
    model = build("logistic")
    weight, bias = model.folded()
    torch.testing.assert_close(model(features()), features() @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_logistic_takes_the_weights_that_it_folds_to():
    model, other = build("logistic"), build("logistic", seed=1)
    other.unfold(*model.folded())
    torch.testing.assert_close(other(features()), model(features()), rtol=1e-4, atol=1e-4)
