"""MoCo v1, v2, v3: the loss against its definition, the momentum encoder, and what BatchNorm must not reveal."""

import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import FeatureStatistics, FusedEncoder, FusedMLPConfig, Sizes
from models.contrastive import contrast as module
from models.contrastive.contrast import Contrast, CrossModalConfig
from models.contrastive.info_nce import info_nce
from models.contrastive.methods import METHODS, MocoV1Config, MocoV2Config, MocoV3Config
from models.contrastive.momentum import ema_, momentum_at
from models.contrastive.views import ViewsConfig, mix, view
from models.layers import BatchNorm
from tests.support.contrastive import drawn, nce

FEATURES = {"mean_rgb": 24, "mean_audio": 8}
SMALL = {  # one small configuration of every kind
    "moco_v1": MocoV1Config(dimension=8, queue=20, batch_norm_groups=4),
    "moco_v2": MocoV2Config(dimension=8, queue=20, batch_norm_groups=4),
    "moco_v3": MocoV3Config(dimension=8, hidden=40, batch_norm_groups=4, temperature=0.2),
}
NORMS = ["batch_norm", "layer_norm"]
CROSS = {"one": None, "cross_modal": CrossModalConfig(weight=0.3, mix=0.5)}
VIEWS = ViewsConfig(corruption=0.3, drop=0.1, noise=0.1)
PLAIN = ViewsConfig(corruption=0.0)  # both views are the video itself


def statistics(widths):
    width = sum(widths.values())
    return FeatureStatistics(
        num_videos=100,
        mean_D=torch.randn(width, generator=drawn(7)),
        variance_D=torch.rand(width, generator=drawn(8)) + 0.1,
        label_counts_C=torch.ones(1),
    )


def encoder(norm="layer_norm", dropout=0.0, widths=FEATURES, seed=0):
    config = FusedMLPConfig(towers=dict(zip(widths, (24, 16, 5), strict=False)), hidden=20, dropout=dropout, norm=norm)
    return FusedEncoder(config, Sizes(features=widths, num_classes=1), statistics(widths), drawn(seed))


def build(kind, norm="layer_norm", cross=None, *, views=VIEWS, dropout=0.0, widths=FEATURES, seed=0, **changes):
    config = dataclasses.replace(SMALL[kind], **changes)
    return Contrast(config, encoder(norm, dropout, widths, seed), widths, views, cross, drawn(seed + 50))


def features(num_videos=16, seed=3, widths=FEATURES):
    return torch.randn(num_videos, sum(widths.values()), generator=drawn(seed))


def apart(contrast):
    """The contrast with a momentum encoder and heads that differ from the trained ones."""
    generator = drawn(99)
    with torch.no_grad():
        for parameter in [*contrast.key_encoder.parameters(), *contrast.key_projectors.parameters()]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return contrast


def train(contrast, steps, generator, learning_rate=0.1):
    """Trains by SGD on batches that the generator draws; returns the loss of each step."""
    parameters = [parameter for parameter in contrast.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    history = []
    for number in range(steps):
        optimizer.zero_grad()
        result = contrast(torch.randn(16, 32, generator=generator), number / steps, generator)
        result.loss.backward()
        optimizer.step()
        history.append(result.loss.item())
    return history


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# The momentum encoder


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0), (1.5, 1.0), (-1.0, 0.99)])
def test_the_momentum_rises_by_half_a_cosine(progress, expected):
    assert momentum_at(0.99, progress) == pytest.approx(expected, abs=1e-12)


def test_the_moving_average_is_over_parameters_alone():
    source, target = encoder("batch_norm", seed=1), encoder("batch_norm")
    source(features() + 3)  # moves the running statistics
    before, towards = snapshot(target), snapshot(source)
    ema_(target, source, 0.9)
    parameters = {name for name, _ in target.named_parameters()}
    for name, tensor in target.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * towards[name] if name in parameters else before[name]
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(before["joint.norm.running_mean"], towards["joint.norm.running_mean"])


def test_the_momentum_encoder_moves_before_it_computes_keys():
    """With momentum 0, a key is the output of the trained encoder at this step."""
    contrast = apart(build("moco_v1", views=PLAIN, momentum=0.0))
    queries = F.normalize(contrast.projectors[0](contrast.encoder(features())), dim=1)
    contrast(features(), 0.0, drawn())
    torch.testing.assert_close(contrast.queues[0].keys[:16], queries)


@pytest.mark.parametrize(("progress", "moved"), [(0.0, 0.1), (0.5, 0.05), (1.0, 0.0)])
@pytest.mark.parametrize("part", ["encoder", "projectors"])
def test_the_momentum_encoder_of_v3_comes_to_rest(progress, moved, part):
    contrast = apart(build("moco_v3", cross=CROSS["cross_modal"], momentum=0.9))
    before, towards = snapshot(getattr(contrast, f"key_{part}")), snapshot(getattr(contrast, part))
    contrast(features(), progress, drawn())
    for name, tensor in getattr(contrast, f"key_{part}").state_dict().items():
        torch.testing.assert_close(tensor, torch.lerp(before[name], towards[name], moved), msg=name)


@pytest.mark.parametrize("kind", ["moco_v1", "moco_v2"])
def test_the_momentum_encoder_of_v1_and_v2_moves_alike_throughout(kind):
    contrasts = [apart(build(kind, momentum=0.9)) for _ in range(2)]
    for contrast, progress in zip(contrasts, (0.0, 1.0), strict=True):
        contrast(features(), progress, drawn())
    first, second = (contrast.key_encoder.state_dict() for contrast in contrasts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["joint.linear.weight"], apart(build(kind)).key_encoder.joint.linear.weight)


# Every method


@pytest.mark.parametrize("cross", CROSS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", METHODS)
class TestEveryMethod:
    def test_every_trainable_weight_and_nothing_else_gets_a_gradient(self, kind, norm, cross):
        contrast = build(kind, norm, CROSS[cross])
        contrast(features(), 0.0, drawn()).loss.backward()
        for name, parameter in contrast.named_parameters():
            assert parameter.requires_grad <= (not name.startswith("key_")), name
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.grad is None or parameter.grad.any(), f"no gradient for {name}"

    def test_training_from_a_saved_state_continues_bit_for_bit(self, kind, norm, cross):
        contrast, other = (build(kind, norm, CROSS[cross], dropout=0.3, seed=seed) for seed in (0, 1))
        generator = drawn()
        train(contrast, 2, generator)
        file, state = io.BytesIO(), generator.get_state()
        torch.save(contrast.state_dict(), file)
        torch.manual_seed(5)  # dropout
        expected = train(contrast, 2, generator)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        generator.set_state(state)
        torch.manual_seed(5)
        assert train(other, 2, generator) == expected
        for name, tensor in contrast.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name

    def test_the_generator_alone_decides(self, kind, norm, cross):
        before = torch.random.get_rng_state()
        contrast = build(kind, norm, CROSS[cross]).eval()
        first, same, other = (contrast(features(), 0.0, drawn(seed)).loss for seed in (0, 0, 1))
        assert first == same != other
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_the_encoder_has_no_groups_after_a_batch(self, kind, norm, cross):
        contrast = build(kind, norm, CROSS[cross])
        contrast(features(), 0.0, drawn())
        assert all(part.groups == 1 for part in contrast.modules() if isinstance(part, BatchNorm))

    def test_evaluation_changes_no_state(self, kind, norm, cross):
        contrast = apart(build(kind, norm, CROSS[cross])).eval()
        before = snapshot(contrast)
        contrast(features(), 0.0, drawn())
        for name, tensor in contrast.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_bf16_autocast_stays_near_float32(self, kind, norm, cross, dtype):
        contrast = build(kind, norm, CROSS[cross])
        expected = contrast.eval()(features().to(dtype), 0.0, drawn()).loss
        with torch.autocast("cpu", torch.bfloat16):
            result = contrast(features().to(dtype), 0.0, drawn())
        contrast.train()
        with torch.autocast("cpu", torch.bfloat16):
            contrast(features().to(dtype), 0.0, drawn()).loss.backward()
        torch.testing.assert_close(result.loss, expected, rtol=0.1, atol=0.1)
        assert result.loss.dtype == torch.float32

    def test_the_result_of_a_batch_holds_scalars(self, kind, norm, cross):
        result = build(kind, norm, CROSS[cross])(features(), 0.0, drawn())
        assert all(value.shape == () and value.isfinite() for value in (result.loss, result.correct, result.spread))
        assert 0 <= result.correct <= 1 and 0 < result.spread <= 1
        assert not result.correct.requires_grad and not result.spread.requires_grad

    def test_learns_to_tell_videos_apart(self, kind, norm, cross):
        """Every step has new videos, so it does not learn them by heart. The first keys of the queue are not videos."""
        contrast = build(kind, norm, CROSS[cross], momentum=0.9)
        optimizer = torch.optim.Adam([p for p in contrast.parameters() if p.requires_grad], lr=0.01)
        generator, basis, history = drawn(), torch.randn(4, 32, generator=drawn(1)), []
        for _ in range(44):
            optimizer.zero_grad()
            result = contrast(torch.randn(16, 4, generator=generator) @ basis, 0.0, generator)
            result.loss.backward()
            optimizer.step()
            history.append(result.loss.item())
        assert sum(history[-8:]) < 0.95 * sum(history[4:12])

    @pytest.mark.gpu
    def test_on_a_gpu_the_host_does_not_wait(self, kind, norm, cross):
        contrast = build(kind, norm, CROSS[cross]).cuda()
        x, generator = features().cuda(), torch.Generator("cuda").manual_seed(0)
        contrast(x, 0.0, generator).loss.backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = contrast(x, 0.0, generator)
            result.loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert result.loss.isfinite() and result.loss.is_cuda


def test_every_kind_has_a_configuration_that_is_tested():
    assert SMALL.keys() == METHODS.keys()
    assert all(type(config) is METHODS[kind] and config.kind == kind for kind, config in SMALL.items())


# The loss of a batch against its definition


def expected_loss(contrast, x, seed, cross):
    """The definition in Python, each video separately, with the same draws; for LayerNorm and evaluation."""
    v3, temperature = isinstance(contrast.config, MocoV3Config), contrast.config.temperature
    generator = drawn(seed)
    normalized = contrast.encoder.normalize(x)
    torch.randperm(len(x), generator=generator)
    one, other = (view(normalized, FEATURES, contrast.views, generator) for _ in range(2))

    def query(number, backbone, rows):
        head = nn.Sequential(contrast.projectors[number], contrast.predictors[number])
        return [F.normalize(head(backbone(row[None])), dim=1)[0].tolist() for row in rows]

    def key(number, backbone, rows):
        return [F.normalize(contrast.key_projectors[number](backbone(row[None])), dim=1)[0].tolist() for row in rows]

    def mean(number, queries, keys):
        total = 0.0
        for b in range(len(queries)):
            others = keys[:b] + keys[b + 1 :] if v3 else contrast.queues[number].keys.tolist()
            total += nce(queries[b], keys[b], others, temperature)
        return total / len(queries)

    backbone, momentum_backbone = contrast.encoder.encode, contrast.key_encoder.encode
    if v3:  # ctr(q1, k2) + ctr(q2, k1), each times 2 T
        intra = 2 * temperature * mean(0, query(0, backbone, one), key(0, momentum_backbone, other))
        intra += 2 * temperature * mean(0, query(0, backbone, other), key(0, momentum_backbone, one))
    else:
        intra = mean(0, query(0, backbone, one), key(0, momentum_backbone, other))
    if cross is None:
        return intra
    mixed = mix(normalized, cross.mix, generator) if cross.mix else normalized
    rgb, audio = mixed[:, :24], mixed[:, 24:]
    towers, momentum_towers = contrast.encoder.towers, contrast.key_encoder.towers
    between = mean(2, query(1, towers[0], rgb), key(2, momentum_towers[1], audio))
    between += mean(1, query(2, towers[1], audio), key(1, momentum_towers[0], rgb))
    scale = 4 * temperature if v3 else 1  # v3: two directions, each times 2 T, here too
    return (1 - cross.weight) * intra + cross.weight * scale * between / 2


@pytest.mark.parametrize("cross", [None, CrossModalConfig(weight=0.3), CrossModalConfig(weight=0.8, mix=1.0)])
@pytest.mark.parametrize("kind", METHODS)
def test_the_loss_of_a_batch_equals_the_definition(kind, cross):
    contrast = apart(build(kind, cross=cross)).eval()
    with torch.no_grad():
        loss = contrast(features(), 0.0, drawn(4)).loss
        assert loss.item() == pytest.approx(expected_loss(contrast, features(), 4, cross), rel=1e-4)


def test_the_two_views_of_v3_are_two():
    """If the two views were equal, the definition above could not show that both directions are used."""
    contrast = apart(build("moco_v3")).eval()
    calls = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "info_nce", lambda *given: calls.append(given) or info_nce(*given))
        contrast(features(), 0.0, drawn())
    (q1, k2, *_), (q2, k1, *_) = calls
    losses = [info_nce(q, k, None, 0.2)[0].item() for q, k in ((q1, k2), (q2, k1), (q1, k1), (q2, k2))]
    assert len(set(losses)) == 4


@pytest.mark.parametrize("cross", CROSS)
@pytest.mark.parametrize("kind", ["moco_v1", "moco_v2"])
def test_a_batchs_keys_are_enqueued_after_its_loss(kind, cross):
    """A momentum encoder that equals the encoder does not move, so only the queue differs from evaluation."""
    contrasts = [build(kind, cross=CROSS[cross]).train(mode) for mode in (True, False)]
    results = [contrast(features(), 0.0, drawn()) for contrast in contrasts]
    for result in results:
        result.loss.backward()
    assert results[0].loss == results[1].loss
    for one, other in zip(*(contrast.parameters() for contrast in contrasts), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)
    for number in range(len(contrasts[0].queues)):
        assert contrasts[0].queues[number].head == 16 and contrasts[1].queues[number].head == 0


def test_with_cross_modal_each_queue_holds_the_keys_of_its_own_feature():
    contrast = build("moco_v1", cross=CrossModalConfig(), views=PLAIN)
    contrast(features(), 0.0, drawn())
    x = contrast.encoder.normalize(features())
    parts = [contrast.encoder.encode(x), contrast.encoder.towers[0](x[:, :24]), contrast.encoder.towers[1](x[:, 24:])]
    for number, units in enumerate(parts):
        keys = F.normalize(contrast.projectors[number](units), dim=1)
        torch.testing.assert_close(contrast.queues[number].keys[:16], keys)


def test_three_features_are_contrasted_in_all_six_directions():
    contrast = build("moco_v2", cross=CrossModalConfig(), widths=FEATURES | {"text": 4})
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "info_nce", lambda *given: calls.append(given) or info_nce(*given))
        contrast(features(widths=FEATURES | {"text": 4}), 0.0, drawn())
    pairs = {(queries.sum().item(), keys.sum().item()) for queries, keys, *_ in calls[1:]}
    assert len(calls) == 1 + 6 and len(pairs) == 6 and len({keys for _, keys in pairs}) == 3


def test_without_weight_the_features_are_not_contrasted():
    without, with_none = build("moco_v1"), build("moco_v1", cross=CrossModalConfig(weight=0.0))
    assert without.state_dict().keys() == with_none.state_dict().keys()
    assert without(features(), 0.0, drawn()).loss == with_none(features(), 0.0, drawn()).loss


# What BatchNorm must not reveal


def moved_by(contrast, row, num_videos):
    """For each contrast of a batch: the rows whose query changes with this video, and those whose key does."""
    runs = []
    for change in (0.0, 1.0):
        x, calls = features(num_videos), []
        x[row] += change * torch.randn(x.shape[1], generator=drawn(11))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "info_nce", lambda *given, calls=calls: calls.append(given) or info_nce(*given))
            contrast(x, 0.0, drawn())
        runs.append(calls)
    return [
        tuple(
            set(((after - before).abs().amax(dim=1) > 1e-5).nonzero().flatten().tolist())
            for before, after in zip(given[:2], changed[:2], strict=True)
        )
        for given, changed in zip(*runs, strict=True)
    ]


@pytest.mark.parametrize("kind", METHODS)
def test_statistics_of_the_whole_batch_tie_a_key_to_the_rows_of_its_query(kind):
    contrast = build(kind, "batch_norm", CrossModalConfig(), views=PLAIN)
    contrast.groups = 1
    for queries, keys in moved_by(contrast, 3, 16):
        assert queries == keys == set(range(16))


@pytest.mark.parametrize("kind", METHODS)
def test_in_groups_of_a_shuffled_batch_a_key_shares_its_statistics_with_other_rows_than_its_query(kind):
    contrast = build(kind, "batch_norm", CrossModalConfig(), views=PLAIN, batch_norm_groups=8)
    same, shared = 0, 0
    for row in range(32):
        for queries, keys in moved_by(contrast, row, 32):
            assert queries == set(range(row % 8, 32, 8))
            assert row in keys and len(keys) == 4
            same += queries == keys
            shared += len(queries & keys) - 1
    calls = 32 * len(moved_by(contrast, 0, 32))
    assert same == 0
    assert shared / calls < 0.6  # of 3 companions; by chance 3 * 3 / 31 = 0.29


def test_without_the_shuffle_a_key_would_share_its_statistics_with_the_rows_of_its_query(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    contrast = build("moco_v1", "batch_norm", views=PLAIN, batch_norm_groups=8)
    for queries, keys in moved_by(contrast, 3, 32):
        assert queries == keys


def test_the_shuffle_is_another_one_every_step(monkeypatch):
    contrast, generator, orders, draw = build("moco_v1", "batch_norm", views=PLAIN), drawn(), [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *given, **named: orders.append(draw(*given, **named)) or orders[-1])
    for _ in range(5):
        contrast(features(), 0.0, generator)
    assert len(orders) == len({tuple(order.tolist()) for order in orders}) == 5


@pytest.mark.parametrize("kind", METHODS)
def test_with_layer_norm_a_video_moves_nothing_but_itself(kind):
    contrast = build(kind, "layer_norm", CrossModalConfig(), views=PLAIN)
    for queries, keys in moved_by(contrast, 3, 16):
        assert queries == keys == {3}


def test_the_groups_are_taken_back_when_a_batch_does_not_fit_them():
    contrast = build("moco_v1", "batch_norm")
    with pytest.raises(ValueError, match="a batch of 15 rows has no 4 equal groups"):
        contrast(features(15), 0.0, drawn())
    assert all(part.groups == 1 for part in contrast.modules() if isinstance(part, BatchNorm))


@pytest.mark.parametrize("kind", METHODS)
def test_with_layer_norm_a_batch_has_any_size(kind):
    assert build(kind)(features(7), 0.0, drawn()).loss.isfinite()


# What is built


def shapes(module):
    return [tuple(parameter.shape) for parameter in module.parameters() if parameter.requires_grad]


def test_the_head_of_v1_is_linear():
    assert shapes(build("moco_v1").projectors[0]) == [(8, 20), (8,)]


def test_the_head_of_v2_has_a_hidden_layer_as_wide_as_its_input():
    contrast = build("moco_v2", cross=CrossModalConfig())
    assert [shapes(head) for head in contrast.projectors] == [
        [(units, units), (units,), (8, units), (8,)] for units in (20, 24, 16)
    ]


@pytest.mark.parametrize("norm", NORMS)
def test_the_heads_of_v3_have_no_biases_and_a_last_norm_of_the_projector_alone(norm):
    contrast = build("moco_v3", norm)
    assert shapes(contrast.projectors[0]) == [(40, 20), (40,), (40,), (8, 40)]
    assert shapes(contrast.predictors[0]) == [(40, 8), (40,), (40,), (8, 40)]
    kind = BatchNorm if norm == "batch_norm" else nn.LayerNorm
    assert isinstance(contrast.projectors[0][-1], kind) and isinstance(contrast.predictors[0][-1], nn.Linear)
    last = contrast.projectors[0][-1]
    assert (last.weight == 1).all() and (last.bias == 0).all()


def test_only_the_queries_of_v3_pass_a_predictor():
    assert not [name for name in build("moco_v3").state_dict() if name.startswith("key_predictors")]
    assert all(shapes(build(kind).predictors) == [] for kind in ("moco_v1", "moco_v2"))


def test_the_encoder_that_is_given_is_the_one_that_trains():
    given = encoder()
    contrast = Contrast(SMALL["moco_v1"], given, FEATURES, VIEWS, None, drawn())
    before = snapshot(given)
    train(contrast, 1, drawn())
    assert contrast.encoder is given
    assert not torch.equal(given.joint.linear.weight, before["joint.linear.weight"])


def test_the_defaults_are_the_published_ones():
    v1, v2, v3 = (METHODS[kind]() for kind in ("moco_v1", "moco_v2", "moco_v3"))
    assert (v1.temperature, v1.dimension, v1.queue, v1.momentum) == (0.07, 128, 65536, 0.999)
    assert (v2.temperature, v2.dimension, v2.queue, v2.momentum) == (0.2, 128, 65536, 0.999)
    assert (v3.temperature, v3.dimension, v3.hidden, v3.momentum) == (1.0, 256, 4096, 0.99)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be from 0.001 to 1,000, but got 0.0"),
        ({"temperature": math.inf}, "temperature must be from 0.001 to 1,000, but got inf"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), but got 1.0"),
        ({"dimension": 0}, "dimension must be from 1 to 16,777,216, but got 0"),
        ({"batch_norm_groups": 0}, "batch_norm_groups must be from 1 to 16,777,216, but got 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        METHODS[kind](**changes)


@pytest.mark.parametrize(("kind", "name"), [("moco_v1", "queue"), ("moco_v2", "queue"), ("moco_v3", "hidden")])
def test_sizes_below_one_are_refused(kind, name):
    with pytest.raises(ValueError, match=f"{name} must be from 1 to 16,777,216, but got 0"):
        METHODS[kind](**{name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 1.0}, r"weight must be in \[0, 1\), but got 1.0"),
        ({"weight": -0.1}, r"weight must be in \[0, 1\), but got -0.1"),
        ({"mix": -1.0}, "mix must be from 0 to 1,000, but got -1.0"),
        ({"mix": math.nan}, "mix must be from 0 to 1,000, but got nan"),
    ],
)
def test_settings_between_features_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CrossModalConfig(**changes)


@pytest.mark.parametrize("kind", ["moco_v1", "moco_v2"])
def test_batch_norm_over_the_whole_batch_is_refused(kind):
    with pytest.raises(ValueError, match=f"batch_norm_groups must be at least 2 for {kind} .* reveal"):
        build(kind, "batch_norm", batch_norm_groups=1)


@pytest.mark.parametrize("theirs", [nn.BatchNorm1d, nn.SyncBatchNorm, nn.LazyBatchNorm1d])
@pytest.mark.parametrize("kind", METHODS)
def test_a_batch_norm_that_cannot_be_split_into_groups_is_refused(kind, theirs):
    """Its statistics are those of the whole batch, whatever `batch_norm_groups` says, and would reveal the keys."""
    given = encoder("layer_norm")
    given.towers[1].norm = theirs() if theirs is nn.LazyBatchNorm1d else theirs(16)
    with pytest.raises(
        ValueError, match=rf"towers\.1\.norm is torch's {theirs.__name__}, .* models\.layers\.BatchNorm"
    ):
        Contrast(SMALL[kind], given, FEATURES, VIEWS, None, drawn())


@pytest.mark.parametrize(("kind", "norm"), [("moco_v1", "layer_norm"), ("moco_v3", "batch_norm")])
def test_one_group_is_allowed_where_it_tells_nothing(kind, norm):
    assert build(kind, norm, batch_norm_groups=1)(features(), 0.0, drawn()).loss.isfinite()


def test_one_feature_cannot_be_contrasted_with_itself():
    with pytest.raises(ValueError, match="cross_modal must be left out for data with one feature, but got mean_rgb"):
        build("moco_v1", cross=CrossModalConfig(), views=ViewsConfig(), widths={"mean_rgb": 24})


def test_an_encoder_of_other_features_is_refused():
    with pytest.raises(ValueError, match=r"the encoder's widths \[24, 8\], but got \[24, 9\]"):
        Contrast(SMALL["moco_v1"], encoder(), FEATURES | {"mean_audio": 9}, VIEWS, None, drawn())


def test_views_that_the_data_cannot_have_are_refused():
    with pytest.raises(ValueError, match="corruption must name every feature"):
        build("moco_v1", views=ViewsConfig(corruption={"mean_rgb": 0.1}))


@pytest.mark.parametrize("config", [*SMALL.values(), CrossModalConfig(weight=0.2)], ids=lambda c: type(c).__name__)
def test_configuration_survives_asdict_through_pydantic(config):
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(type(config))
    assert adapter.validate_python(dataclasses.asdict(config)) == config
    with pytest.raises(pydantic.ValidationError, match="no_such_setting"):
        adapter.validate_python({"no_such_setting": 1})


def test_towers_of_the_cross_modal_part_see_the_columns_that_the_encoder_gives_them():
    config = FusedMLPConfig(towers={"mean_rgb": 16, "mean_audio": 6}, hidden=10, dropout=0.0, variance_power=3.0)
    statistics = FeatureStatistics(
        num_videos=10,
        mean_D=torch.zeros(32),
        variance_D=torch.linspace(0.1, 4.0, 32),
        label_counts_C=torch.ones(3, dtype=torch.int64),
    )
    sizes = Sizes(features={"mean_rgb": 24, "mean_audio": 8}, num_classes=3)
    encoder = FusedEncoder(config, sizes, statistics, torch.Generator().manual_seed(0))
    contrast = Contrast(
        MocoV2Config(queue=16, dimension=4, batch_norm_groups=2),
        encoder,
        sizes.features,
        ViewsConfig(corruption=0.0),
        CrossModalConfig(weight=0.5),
        torch.Generator().manual_seed(0),
    )
    seen: dict[str, list[torch.Tensor]] = {"rgb": [], "audio": []}
    for name, tower in zip(seen, encoder.towers, strict=True):
        tower.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0].clone()))
    contrast(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), 0.0, torch.Generator().manual_seed(2))
    for inputs in seen.values():
        assert len(inputs) == 2 and torch.equal(inputs[0], inputs[1])  # of the view, which changes nothing, and across
