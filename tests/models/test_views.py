"""Views of precomputed features: their effect on a value, a video and a batch."""

import dataclasses
import math

import pytest
import torch

from models.contrastive.views import ViewsConfig, check, corrupt, drop, mix, noise, view

FEATURES = {"rgb": 12, "audio": 5, "text": 3}
WIDTHS = list(FEATURES.values())
ALL = ViewsConfig(corruption={"rgb": 0.2, "audio": 0.5, "text": 0.0}, drop=0.3, noise=0.1)

VIEWS = {
    "corrupt": lambda x, generator: corrupt(x, FEATURES, 0.4, generator),
    "corrupt by feature": lambda x, generator: corrupt(x, FEATURES, {"rgb": 0.1, "audio": 0.5, "text": 0.9}, generator),
    "drop": lambda x, generator: drop(x, FEATURES, 0.6, generator),
    "noise": lambda x, generator: noise(x, FEATURES, 0.2, generator),
    "mix": lambda x, generator: mix(x, 0.7, generator),
    "view": lambda x, generator: view(x, FEATURES, ALL, generator),
}


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def features(num_videos=32, seed=9, width=20):
    """No value occurs twice."""
    return torch.randn(num_videos, width, generator=drawn(seed))


def numbered(num_videos, width):
    """Each value is row * width + column, so that it tells where it comes from."""
    return torch.arange(num_videos * width, dtype=torch.float32).view(num_videos, width)


@pytest.mark.parametrize("name", VIEWS)
class TestEveryView:
    def test_the_same_generator_gives_the_same_view_and_goes_on_to_another(self, name):
        generator = drawn()
        first, second = VIEWS[name](features(), generator), VIEWS[name](features(), generator)
        assert torch.equal(VIEWS[name](features(), drawn()), first) and not torch.equal(first, second)

    def test_the_input_is_left_alone(self, name):
        x = features()
        y = VIEWS[name](x, drawn())
        assert torch.equal(x, features()) and y.data_ptr() != x.data_ptr() and not torch.equal(x, y)

    def test_torchs_global_generator_is_left_alone(self, name):
        before = torch.random.get_rng_state()
        VIEWS[name](features(), drawn())
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_shape_and_dtype_stay(self, name, dtype):
        y = VIEWS[name](features(7).to(dtype), drawn())
        assert y.shape == (7, sum(WIDTHS)) and y.dtype == dtype

    @pytest.mark.gpu
    def test_on_a_gpu_nobody_waits(self, name):
        x, generator = features().cuda(), torch.Generator("cuda").manual_seed(0)
        VIEWS[name](x, generator)
        torch.cuda.set_sync_debug_mode("error")
        try:
            y = VIEWS[name](x, generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert y.is_cuda and y.isfinite().all()


# Corruption


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6])
@pytest.mark.parametrize(("num_videos", "width"), [(400, 300), (2, 60_000)])
def test_the_share_of_corrupted_values_is_the_rate(num_videos, width, rate):
    """Also with two videos, where a value that replaced itself would lower the share."""
    x = numbered(num_videos, width)
    share = (corrupt(x, {"a": width}, rate, drawn()) != x).double().mean().item()
    assert share == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / x.numel()))


def test_every_feature_has_its_own_rate():
    x, rates = numbered(1000, sum(WIDTHS)), dict(zip(FEATURES, [0.1, 0.5, 0.0], strict=True))
    changed = (corrupt(x, FEATURES, rates, drawn()) != x).double()
    for part, rate in zip(changed.split(WIDTHS, dim=1), rates.values(), strict=True):
        assert part.mean().item() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / part.numel()))


@pytest.mark.parametrize("num_videos", [2, 3, 50])
def test_a_corrupted_value_is_that_of_the_same_column_of_another_video(num_videos):
    y = corrupt(numbered(num_videos, 41), {"a": 30, "b": 11}, 0.5, drawn()).long()
    rows, columns = y // 41, y % 41
    assert torch.equal(columns, torch.arange(41).expand(num_videos, 41))
    assert rows.min() >= 0 and rows.max() < num_videos
    assert 0.3 < (rows != torch.arange(num_videos)[:, None]).double().mean() < 0.7


def test_the_corrupted_values_of_a_video_come_from_many_others():
    y = corrupt(numbered(50, 200), {"a": 200}, 0.5, drawn()).long()
    for row in range(50):
        assert len({source for source in (y[row] // 200).tolist() if source != row}) > 30


def test_every_other_video_is_as_likely_a_source():
    """In 100,000 columns of 5 videos, each of the other rows replaces a quarter of the corrupted values of row 0."""
    sources = corrupt(numbered(5, 100_000).double(), {"a": 100_000}, 0.5, drawn())[0].long() // 100_000
    counts = torch.bincount(sources, minlength=5)[1:].double()
    expected = counts.sum() / 4
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_corruption_keeps_every_columns_distribution():
    x = features(4000) * torch.arange(1, 21) + torch.arange(20)
    y = corrupt(x, FEATURES, 0.6, drawn())
    torch.testing.assert_close(y.mean(dim=0), x.mean(dim=0), rtol=0.1, atol=1.0)
    torch.testing.assert_close(y.std(dim=0), x.std(dim=0), rtol=0.1, atol=0)


def test_corruption_of_the_columns_is_independent():
    """The corruption of one column is independent of that of another: correlations of the mask are those of chance."""
    changed = (corrupt(numbered(20_000, 8), {"a": 8}, 0.3, drawn()) != numbered(20_000, 8)).double()
    correlations = torch.corrcoef(changed.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / math.sqrt(20_000)


def test_a_single_video_cannot_be_corrupted():
    with pytest.raises(ValueError, match="at least 2 videos, but got 1"):
        corrupt(features(1), FEATURES, 0.2, drawn())


# Dropped features


def dropped(y):
    """[B, features] whether the feature is 0 in all its columns."""
    return torch.stack([(part == 0).all(dim=1) for part in y.split(WIDTHS, dim=1)], dim=1)


@pytest.mark.parametrize("probability", [0.2, 1.0])
def test_each_feature_is_dropped_in_its_share_of_the_videos_and_never_two(probability):
    gone = dropped(drop(features(3000), FEATURES, probability, drawn()))
    assert gone.sum(dim=1).max() == 1
    share = probability / 3
    for feature in range(3):
        assert gone[:, feature].double().mean().item() == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share) / 3000)
        )


def test_what_is_not_dropped_stays_as_it_was():
    x = features(300)
    y = drop(x, FEATURES, 0.5, drawn())
    kept = ~dropped(y).repeat_interleave(torch.tensor(WIDTHS), dim=1)
    assert torch.equal(y[kept], x[kept]) and not kept.all()


def test_the_only_feature_cannot_be_dropped():
    with pytest.raises(ValueError, match="at least 2 features to drop one, but got 1"):
        drop(features(width=4), {"a": 4}, 0.5, drawn())


# Noise and mixing


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_noise_has_its_standard_deviation_and_no_mean(sigma):
    x = features(2000)
    difference = (noise(x, {}, sigma, drawn()) - x).double()
    assert difference.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * x.numel()))
    assert abs(difference.mean().item()) < 5 * sigma / math.sqrt(x.numel())


def test_a_batch_is_mixed_by_one_share_and_one_permutation():
    """Video b is the unit vector b, so a mixed video shows its partner and the share of each."""
    y = mix(torch.eye(12, dtype=torch.float64), 1.0, drawn())
    torch.testing.assert_close(y.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(y.sum(dim=0), torch.ones(12, dtype=torch.float64))  # every video is a partner once
    own = y.diagonal()[y.diagonal() < 1]  # 1: the video is its own partner
    others = y[~torch.eye(12, dtype=torch.bool)]
    others = others[others > 0]
    assert len(own) == len(others) >= 10 and 0.01 < own[0] < 0.99
    torch.testing.assert_close(own, own[:1].expand_as(own))
    torch.testing.assert_close(others, 1 - own)


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.3, 1 / 6.4), (4.0, 1 / 36)])
def test_the_share_is_of_the_beta_distribution(alpha, variance):
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1))."""
    generator, shares = drawn(), []
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    while len(shares) < 1500:
        low, high = mix(x, alpha, generator).flatten().tolist()
        if low != 0 or high != 1:  # in the other case each video is its own partner
            shares.append(high)
    shares = torch.tensor(shares)
    assert shares.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 1500))
    assert shares.var().item() == pytest.approx(variance, rel=0.15)


# All together, and the settings


def test_a_view_corrupts_then_drops_then_adds_noise():
    x = features()
    generator = drawn()
    expected = corrupt(x, FEATURES, ALL.corruption, generator)
    expected = drop(expected, FEATURES, ALL.drop, generator)
    expected = noise(expected, FEATURES, ALL.noise, generator)
    assert torch.equal(view(x, FEATURES, ALL, drawn()), expected)


def test_corruption_by_name_follows_the_datas_order():
    other_order = dataclasses.replace(ALL, corruption=dict(reversed(ALL.corruption.items())))
    assert torch.equal(view(features(), FEATURES, other_order, drawn()), view(features(), FEATURES, ALL, drawn()))


def test_what_is_zero_draws_nothing():
    generator, x = drawn(), features()
    assert torch.equal(view(x, FEATURES, ViewsConfig(corruption=0.0), generator), x)
    assert torch.equal(generator.get_state(), drawn().get_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": 1.0}, r"corruption must be in \[0, 1\), but got 1.0"),
        ({"corruption": math.nan}, r"corruption must be in \[0, 1\), but got nan"),
        ({"corruption": {"rgb": 0.1, "audio": -0.1}}, r"corruption.audio must be in \[0, 1\), but got -0.1"),
        ({"drop": 1.5}, r"drop must be from 0 to 1, but got 1.5"),
        ({"noise": -1.0}, r"noise must be from 0 to 1e\+06, but got -1.0"),
        ({"noise": math.inf}, r"noise must be from 0 to 1e\+06, but got inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewsConfig(**settings)


@pytest.mark.parametrize(
    ("config", "widths", "message"),
    [
        (ViewsConfig(corruption={"rgb": 0.1}), FEATURES, r"\(rgb, audio, text\), but got rgb$"),
        (ViewsConfig(corruption={}), FEATURES, "but got none"),
        (ViewsConfig(drop=0.1), {"rgb": 4}, r"drop must be 0 for data with one feature \(rgb\), but got 0.1"),
    ],
)
def test_views_that_the_data_cannot_have_are_refused(config, widths, message):
    with pytest.raises(ValueError, match=message):
        check(config, widths)


def test_views_that_the_data_can_have_are_accepted():
    check(ALL, FEATURES)
    check(ViewsConfig(), {"rgb": 4})


@pytest.mark.parametrize("config", [ViewsConfig(), ALL])
def test_configuration_survives_asdict_through_pydantic(config):
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(ViewsConfig)
    assert adapter.validate_python(dataclasses.asdict(config)) == config
    with pytest.raises(pydantic.ValidationError, match="no_such_setting"):
        adapter.validate_python({"no_such_setting": 1})
