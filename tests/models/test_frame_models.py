"""The frame-level models against their formulas, written as loops over videos and frames in float64.

Where published code was wrong, a test here would fail with it.
"""

import numpy as np
import pytest
import torch
from torch import nn

import models
from models import FeatureStatistics, FusedMLPConfig, Sizes
from models.frame.attention import Attention, AttentionConfig
from models.frame.average_logistic import AverageLogisticConfig
from models.frame.dbof import Dbof, DbofConfig
from models.frame.gated_dbof import GatedCount, GatedDbofConfig, gated_count
from models.frame.gru import Gru, GruConfig
from models.frame.lstm import Lstm, LstmConfig
from models.frame.netfv import FisherVector, NetFvConfig
from models.frame.netrvlad import NetRVladConfig, sums_of_frames
from models.frame.netvlad import NetVladConfig, Vlad
from models.frame.nextvlad import GroupedVlad, NeXtVlad, NeXtVladConfig
from models.frame.parts.clusters import ContextGating, Hidden, PerFeature
from models.frame.parts.heads import HeadConfig
from models.frame.parts.recurrent import outside_half
from models.frame.soft_dbof import SoftCount, SoftDbofConfig, soft_count
from models.video.mixture_of_experts import MixtureOfExpertsConfig

SIZES = Sizes(features={"rgb": 6, "audio": 4}, num_classes=3, level="frame")
CLUSTERS = {"rgb": 5, "audio": 3}
MASK = torch.arange(4) < torch.tensor([[4], [2], [1]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(width=6):
    return torch.randn(3, 4, width, generator=generator(1)) * MASK[..., None]


def real(x):
    """The frames of each video, as float64 arrays."""
    return [video[mask].double().numpy() for video, mask in zip(x, MASK, strict=True)]


def array(parameter):
    return parameter.detach().double().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def unit(x):
    return x / np.sqrt(max((x**2).sum(), 1e-12))


def shares(assignment, video):
    """The shares of an assignment without BatchNorm."""
    return softmax(video @ array(assignment.linear.weight).T + array(assignment.linear.bias))


def settled(module):
    """The model in evaluation; every BatchNorm has running statistics, scales and shifts unlike the initial ones."""
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_(generator=generator(5))
                norm.running_var.uniform_(0.5, 2, generator=generator(6))
                norm.weight.uniform_(0.5, 2, generator=generator(7))
                norm.bias.normal_(generator=generator(8))
    return module.eval()


def normed(norm, x):
    """BatchNorm by its definition, with the epsilon of the sources."""
    norm = getattr(norm, "norm", norm)
    x = (x - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + 1e-3)
    return x * array(norm.weight) + array(norm.bias)


def close(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), np.stack(expected), rtol=1e-4, atol=1e-6)


class TestBagsOfFrames:
    @pytest.mark.parametrize(("pooling", "reduce"), [("max", np.max), ("average", np.mean)])
    @pytest.mark.parametrize(("activation", "function"), [("sigmoid", sigmoid), ("relu6", lambda x: np.clip(x, 0, 6))])
    def test_dbof(self, pooling, reduce, activation, function):
        config = DbofConfig(clusters=7, hidden=5, pooling=pooling, activation=activation, batch_norm=False)
        model = Dbof(config, SIZES, generator())
        x = frames(10)
        expected = []
        for video in real(x):
            votes = function(video @ array(model.clusters.weight).T + array(model.clusters.bias))
            pooled = reduce(votes, axis=0)
            expected.append(function(pooled @ array(model.hidden.weight).T + array(model.hidden.bias)))
        close(model(x, MASK), expected)

    def test_dbof_with_batch_norm(self):
        """BatchNorm follows the frames, the votes and the hidden units, each before the next operation."""
        model = settled(Dbof(DbofConfig(clusters=7, hidden=5), SIZES, generator()))
        x = frames(10)
        expected = []
        for video in real(x):
            votes = normed(model.cluster_norm, normed(model.input_norm, video) @ array(model.clusters.weight).T)
            pooled = sigmoid(votes).max(axis=0)
            expected.append(sigmoid(normed(model.hidden_norm, array(model.hidden.weight) @ pooled)))
        close(model(x, MASK), expected)
        assert model.clusters.bias is None and model.hidden.bias is None

    def test_a_non_linearity_is_really_applied(self):
        """The source compared the activation's tensor with its name, so it applied none and the model was linear."""
        config = DbofConfig(clusters=7, hidden=5, activation="relu6")
        model = Dbof(config, SIZES, generator())
        x = 100 * frames(10)
        hidden = model(x, MASK)
        assert hidden.min() >= 0 and hidden.max() <= 6
        model.eval()
        assert not torch.allclose(model(-x, MASK) - model(0 * x, MASK), model(0 * x, MASK) - model(x, MASK), atol=1e-3)

    @pytest.mark.parametrize("maximum", [False, True])
    def test_soft_dbof(self, maximum):
        config = SoftDbofConfig(clusters=CLUSTERS, maximum=maximum, batch_norm=False)
        count = soft_count(config, "rgb", SIZES, generator())
        x = frames()
        expected = []
        for video in real(x):
            a = shares(count.assignment, video)
            expected.append(np.concatenate([unit(a.sum(axis=0))] + [unit(a.max(axis=0))] * maximum))
        close(count(x, MASK), expected)
        assert count.width == expected[0].size

    def test_gated_dbof(self):
        count = gated_count(GatedDbofConfig(clusters=CLUSTERS, batch_norm=False), "rgb", SIZES, generator())
        x = frames()
        expected = []
        for video in real(x):
            a = shares(count.assignment, video)
            gate = unit(a.max(axis=0)) @ array(count.down.weight).T @ array(count.up.weight).T + array(count.up.bias)
            expected.append(unit(sigmoid(gate) * a.sum(axis=0)))
        close(count(x, MASK), expected)

    def test_only_the_widest_feature_is_gated(self):
        config = GatedDbofConfig(clusters=CLUSTERS)
        assert isinstance(gated_count(config, "rgb", SIZES, generator()), GatedCount)
        assert isinstance(gated_count(config, "audio", SIZES, generator()), SoftCount)


class TestVlad:
    def test_netvlad(self):
        vlad = Vlad(NetVladConfig(clusters=CLUSTERS, batch_norm=False), "rgb", SIZES, generator())
        x, centres = frames(), array(vlad.centres_1DK)[0]
        expected = []
        for video in real(x):
            a = shares(vlad.assignment, video)
            v = np.array([[sum(a[t, k] * (video[t, d] - centres[d, k]) for t in range(len(video))) for k in range(5)]
                          for d in range(6)])  # fmt: skip
            expected.append(unit(np.stack([unit(column) for column in v.T], axis=1).reshape(-1)))  # d-major
        close(vlad(x, MASK), expected)

    def test_netrvlad_is_netvlad_without_centres(self):
        config = NetRVladConfig(clusters=CLUSTERS, batch_norm=False)
        sums, vlad = sums_of_frames(config, "rgb", SIZES, generator()), Vlad(config, "rgb", SIZES, generator())
        with torch.no_grad():
            vlad.centres_1DK.zero_()
        torch.testing.assert_close(sums(frames(), MASK), vlad(frames(), MASK))
        assert sums.centres_1DK is None

    def test_centres_are_drawn_apart_from_the_assignments(self):
        sizes = Sizes(features={"rgb": 100}, num_classes=1, level="frame")
        vlad = Vlad(NetVladConfig(clusters={"rgb": 50}), "rgb", sizes, generator())
        assert vlad.centres_1DK.std().item() == pytest.approx(0.1, rel=0.05)  # 1 / sqrt(D)
        assert vlad.assignment.linear.weight.std().item() == pytest.approx(0.1, rel=0.05)
        assert not torch.allclose(vlad.centres_1DK[0], vlad.assignment.linear.weight.T)

    @pytest.mark.parametrize("coupled", [False, True])
    def test_netfv(self, coupled):
        config = NetFvConfig(clusters=CLUSTERS, coupled=coupled, batch_norm=False)
        vector = FisherVector(config, "rgb", SIZES, generator())
        x = frames()
        mu = 0.01 * array(vector.assignment.linear.weight).T if coupled else array(vector.centres_1DK)[0]
        sigma = array(vector.root_sigma_1DK)[0] ** 2 + 1e-6
        expected = []
        for video in real(x):
            a = shares(vector.assignment, video)
            first, second = np.zeros((6, 5)), np.zeros((6, 5))
            for t, frame in enumerate(video):
                away = (frame[:, None] - mu) / sigma
                first += a[t] * away
                second += a[t] * (away**2 - 1)
            first = np.stack([unit(column) for column in first.T], axis=1)
            expected.append(np.concatenate([unit(first.reshape(-1)), unit(second.reshape(-1))]))
        close(vector(x, MASK), expected)

    def test_nextvlad(self):
        """The pooling in evaluation; the assignments' BatchNorm has statistics that are not the initial ones."""
        config = NeXtVladConfig(clusters=CLUSTERS, groups={"rgb": 3, "audio": 2})
        vlad = GroupedVlad(config, "rgb", SIZES, generator())
        norm = vlad.assignment_norm.norm
        with torch.no_grad():
            norm.running_mean.normal_(generator=generator(5))
            norm.running_var.uniform_(0.5, 2, generator=generator(6))
        vlad.eval()
        x, centres = frames(), array(vlad.centres_1DK)[0]
        expected = []
        for video in real(x):
            v = np.zeros((4, 5))
            for frame in video:
                wide = array(vlad.expand.weight) @ frame + array(vlad.expand.bias)
                attention = sigmoid(array(vlad.attention.weight) @ wide + array(vlad.attention.bias))
                scores = array(vlad.assignment.weight) @ wide
                scores = (scores - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + 1e-3)
                for g in range(3):
                    a = attention[g] * softmax(scores[5 * g : 5 * g + 5])
                    v += a * (wide[4 * g : 4 * g + 4, None] - centres)
            columns = np.stack([unit(column) for column in v.T], axis=1).reshape(-1)
            expected.append(columns / np.sqrt(1 + 1e-3))  # BatchNorm before its first batch
        close(vlad(x, MASK), expected)

    def test_nextvlads_gates_are_squeezed(self):
        config = NeXtVladConfig(clusters=CLUSTERS, groups={"rgb": 3, "audio": 2}, hidden=16, gating_reduction=4)
        model = NeXtVlad(config, SIZES, generator())
        assert model.squeeze.weight.shape == (4, 16) and model.excite.weight.shape == (16, 4)
        with torch.no_grad():
            model.excite.bias.fill_(-1000.0)
        assert not model(frames(10), MASK).any()

    def test_nextvlads_hidden_units_are_gated_by_fewer(self):
        """As in the source: no relu between the hidden units' BatchNorm and the gates, but one within the gates."""
        config = NeXtVladConfig(clusters=CLUSTERS, groups={"rgb": 3, "audio": 2}, hidden=16)
        model = settled(NeXtVlad(config, SIZES, generator()))
        x = frames(10)
        pooled = torch.cat([model.poolings[0](x[..., :6], MASK), model.poolings[1](x[..., 6:], MASK)], dim=1)
        expected = []
        for row in array(pooled):
            hidden = normed(model.norm, array(model.hidden.weight) @ row)
            few = np.maximum(normed(model.squeeze_norm, array(model.squeeze.weight) @ hidden), 0)
            expected.append(hidden * sigmoid(array(model.excite.weight) @ few + array(model.excite.bias)))
        close(model(x, MASK), expected)
        assert (np.stack(expected) < 0).any() and model.squeeze.weight.shape == (2, 16)

    def test_groups_must_divide_the_expanded_width(self):
        config = NeXtVladConfig(clusters=CLUSTERS, groups={"rgb": 5, "audio": 2})
        with pytest.raises(
            ValueError, match=r"groups\.rgb must divide expansion times the feature's width, 12, but got 5"
        ):
            NeXtVlad(config, SIZES, generator())


class TestHidden:
    def test_without_relu_it_is_linear(self):
        config = NetVladConfig(clusters=CLUSTERS, hidden=4, relu=False, context_gating=False)
        hidden = Hidden(config, 7, generator())
        x = torch.randn(3, 7, generator=generator(2))
        torch.testing.assert_close(hidden(x), x @ hidden.linear.weight.T + hidden.linear.bias)
        assert hidden.linear.weight.std().item() == pytest.approx(5**-0.5, rel=0.3)  # 1 / sqrt(clusters of rgb)

    def test_with_relu_it_lies_between_0_and_6(self):
        hidden = Hidden(NetVladConfig(clusters=CLUSTERS, hidden=40, relu=True, context_gating=False), 7, generator())
        with torch.no_grad():
            hidden.norm.weight.fill_(100.0)
        x = hidden(torch.randn(30, 7, generator=generator(2)))
        assert x.min() == 0 and x.max() == 6 and hidden.linear.bias is None  # BatchNorm has a bias

    def test_context_gating(self):
        gating = ContextGating(NetVladConfig(clusters=CLUSTERS, batch_norm=False), 4, generator())
        x = torch.randn(3, 4, generator=generator(2))
        expected = [h * sigmoid(array(gating.linear.weight) @ h + array(gating.linear.bias)) for h in array(x)]
        close(gating(x), expected)

    def test_gated_netvlad_with_batch_norm(self):
        """BatchNorm is on whole frames, on the assignments and on the gates; not on the hidden layer."""
        model = settled(PerFeature(Vlad, NetVladConfig(clusters=CLUSTERS, hidden=4), SIZES, generator()))
        x, hidden = frames(10), model.hidden
        expected = []
        for video in real(x):
            video, pooled = normed(model.norm, video), []
            for vlad, part in zip(model.poolings, np.split(video, [6], axis=1), strict=True):
                assignment = vlad.assignment
                a = softmax(normed(assignment.norm, part @ array(assignment.linear.weight).T))
                v = part.T @ a - a.sum(axis=0) * array(vlad.centres_1DK)[0]
                pooled.append(unit(np.stack([unit(column) for column in v.T], axis=1).reshape(-1)))
            h = array(hidden.linear.weight) @ np.concatenate(pooled) + array(hidden.linear.bias)
            expected.append(h * sigmoid(normed(hidden.gating.norm, array(hidden.gating.linear.weight) @ h)))
        close(model(x, MASK), expected)
        assert model.poolings[0].assignment.linear.bias is None and hidden.gating.linear.bias is None

    def test_gates_without_batch_norm_have_a_bias_for_each_unit(self):
        """The source gave them one bias for each cluster, which failed."""
        gating = ContextGating(NetVladConfig(clusters=CLUSTERS, batch_norm=False), 4, generator())
        assert gating.linear.bias.shape == (4,)

    def test_features_are_pooled_apart_and_in_the_order_of_the_data(self):
        config = NetVladConfig(clusters={"audio": 3, "rgb": 5}, hidden=4)
        model = PerFeature(Vlad, config, SIZES, generator())
        assert [pooling.width for pooling in model.poolings] == [6 * 5, 4 * 3]
        with pytest.raises(ValueError, match=r"clusters must name every feature of the data once \(rgb, audio\)"):
            PerFeature(Vlad, NetVladConfig(clusters={"rgb": 5}), SIZES, generator())


WITHOUT_BATCH_NORM = {"hidden": 3, "batch_norm": False, "head": HeadConfig(kind="logistic")}


@pytest.mark.parametrize(
    "config",
    [DbofConfig(clusters=4, **WITHOUT_BATCH_NORM)]
    + [
        make(clusters=CLUSTERS, relu=True, context_gating=True, **WITHOUT_BATCH_NORM)
        for make in (SoftDbofConfig, GatedDbofConfig, NetVladConfig, NetRVladConfig, NetFvConfig)
    ],
    ids=lambda config: config.kind,
)
def test_batch_norm_can_be_switched_off(config):
    """In the source, `add_batch_norm or FLAG` could not be False, and the branch without BatchNorm failed."""
    model = models.build(config, SIZES, statistics(SIZES))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    assert model(frames(10), MASK).isfinite().all()


def lstm_step(x, h_u, c, h):
    """c and h after a frame, from x = x W + b and h_u = h U."""
    i, f, g, o = np.split(x + h_u, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [c, sigmoid(o) * np.tanh(c)]


def gru_step(x, h_u, h):
    """h after a frame."""
    (r, z, n), (r_h, z_h, n_h) = np.split(x, 3), np.split(h_u, 3)
    n = np.tanh(n + sigmoid(r + r_h) * n_h)
    return [(1 - sigmoid(z + z_h)) * n + sigmoid(z + z_h) * h]


class TestRecurrent:
    @pytest.mark.parametrize("state", ["all", "top"])
    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("kind", ["lstm", "gru"])
    def test_states_at_a_videos_end(self, kind, backwards, state):
        model_class, config_class, step, num_states = {
            "lstm": (Lstm, LstmConfig, lstm_step, 2),
            "gru": (Gru, GruConfig, gru_step, 1),
        }[kind]
        model = model_class(config_class(cells=5, state=state, reverse=backwards), SIZES, generator())
        x = frames(10)
        expected = []
        for video in real(x):
            inputs, ends = video[::-1] if backwards else video, []
            for layer in model.layers:
                weight, recurrent, bias = array(layer.weight), array(layer.recurrent), array(layer.bias)
                states, outputs = [np.zeros(5)] * num_states, []
                for frame in inputs:
                    states = step(weight @ frame + bias, recurrent @ states[-1], *states)
                    outputs.append(states[-1])
                ends += states
                inputs = outputs
            expected.append(np.concatenate(ends) if state == "all" else ends[-1])
        close(model(x, MASK), expected)
        assert model.width == expected[0].size

    def test_a_cell_stays_what_it_was_through_any_padding(self):
        """The states are equal bit for bit: on padding the forget gate is 1 and the input gate 0."""
        layer = Lstm(LstmConfig(cells=5, layers=1), SIZES, generator()).layers[0]
        x = torch.nn.functional.pad(frames(10), (0, 0, 0, 300))
        mask = torch.nn.functional.pad(MASK, (0, 300))
        assert torch.equal(layer(x, mask)[1], layer(x[:, :4], MASK)[1])

    @pytest.mark.parametrize("state", ["all", "top"])
    @pytest.mark.parametrize("kind", ["lstm", "gru"])
    def test_without_bfloat16_of_its_own_a_layer_runs_in_float32_under_autocast(self, kind, state, monkeypatch):
        """As on a GPU, where autocast would give cuDNN float16: the bits are those without autocast."""
        make, config = {"lstm": (Lstm, LstmConfig), "gru": (Gru, GruConfig)}[kind]
        model, x, given = make(config(cells=5, state=state), SIZES, generator()), frames(10), []
        real_kernel = getattr(torch, kind)

        def kernel(x, states, weights, *settings):
            given.extend(tensor.dtype for tensor in (x, *states, *weights))
            given.append(torch.is_autocast_enabled("cpu"))
            return real_kernel(x, states, weights, *settings)

        monkeypatch.setattr(torch, kind, kernel)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        expected = model(x, MASK)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x.bfloat16().float(), MASK), model(x, MASK)
        assert set(given) == {torch.float32, False}
        assert torch.equal(found[1], expected) and not torch.equal(found[0], expected)
        found[1].sum().backward()
        assert all(weight.grad.dtype == torch.float32 and weight.grad.any() for weight in model.parameters())

    @pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
    def test_a_gpus_layers_are_outside_autocast(self, capability, monkeypatch):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast would refuse without a GPU
        try:
            with outside_half(torch.device("cuda")):
                assert not torch.is_autocast_enabled("cuda")
            assert torch.is_autocast_enabled("cuda")
        finally:
            torch.set_autocast_enabled("cuda", False)

    def test_on_a_cpu_autocast_means_bfloat16(self):
        with torch.autocast("cpu", torch.bfloat16), outside_half(torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu") == (torch.backends.cpu.get_cpu_capability() != "AVX2")

    def test_what_an_lstm_reads_on_padding_is_not_saved(self):
        layer = Lstm(LstmConfig(cells=5, layers=1), SIZES, generator()).layers[0]
        assert layer.state_dict().keys() == {"weight", "recurrent", "bias"}

    def test_gates_start_where_the_settings_say(self):
        lstm = Lstm(LstmConfig(cells=2, layers=1, forget_bias=3.0), SIZES, generator()).layers[0]
        gru = Gru(GruConfig(cells=2, layers=1, gate_bias=2.0), SIZES, generator()).layers[0]
        assert lstm.bias.tolist() == [0, 0, 3, 3, 0, 0, 0, 0]  # i, f, g, o
        assert gru.bias.tolist() == [2, 2, 2, 2, 0, 0]  # r, z, n


def test_average_logistic():
    """The model is linear in the mean of the real frames, each scaled to length 1 over all features together."""
    model = models.build(AverageLogisticConfig(), SIZES, statistics(SIZES), generator())
    x = frames(10)
    means = [np.mean([unit(frame) for frame in video], axis=0) for video in real(x)]
    close(model(x, MASK), [array(model.head.weight) @ mean + array(model.head.bias) for mean in means])


def test_attention():
    config = AttentionConfig(heads=2, units=3, hidden=4)
    model = Attention(config, SIZES, generator()).eval()
    x = frames(10)
    expected = []
    for video in real(x):
        v = np.tanh(video @ array(model.tanh.weight).T + array(model.tanh.bias))
        u = sigmoid(video @ array(model.gate.weight).T + array(model.gate.bias))
        weights = softmax((v * u @ array(model.score.weight).T).T)  # of each head, over the frames
        hidden = array(model.hidden.weight) @ (weights @ video).reshape(-1) / np.sqrt(1 + 1e-3)
        expected.append(np.clip(hidden, 0, 6))
    close(model(x, MASK), expected)


@pytest.mark.parametrize("kind", ["mixtures", "low_rank", "probability_gating"])
def test_a_setting_that_a_logistic_head_does_not_read_is_refused(kind):
    value = {"mixtures": 4, "low_rank": 8, "probability_gating": "inputs"}[kind]
    with pytest.raises(ValueError, match=f"{kind} has no effect on a logistic head, only on moe, but got {value}"):
        HeadConfig(kind="logistic", **{kind: value})


# Numbers of parameters, counted on the meta device, without memory for them.

YT8M = Sizes(features={"rgb": 1024, "audio": 128}, num_classes=3862, level="frame")


def statistics(sizes):
    return FeatureStatistics(
        num_videos=10,
        mean_D=torch.zeros(sizes.width, device="cpu"),
        variance_D=torch.ones(sizes.width, device="cpu"),
        label_counts_C=torch.ones(sizes.num_classes, dtype=torch.int64, device="cpu"),
    )


def on_meta(config):
    with torch.device("meta"):
        return models.build(config, YT8M, statistics(YT8M))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_nextvlad_has_the_published_number_of_parameters():
    """79 M with the 112 clusters and the logistic head of the submission; 128 clusters would give 88.9 M."""
    config = NeXtVladConfig(
        clusters={"rgb": 112, "audio": 56}, groups={"rgb": 8, "audio": 4}, head=HeadConfig(kind="logistic")
    )
    assert count(on_meta(config)) == pytest.approx(79e6, rel=0.01)


def test_netvlads_hidden_matrix_has_the_published_size():
    model = on_meta(NetVladConfig(clusters={"rgb": 256, "audio": 128}))
    assert model.pooling.hidden.linear.weight.shape == (1024, 278_528)  # 285 M


def moe(inputs):
    """The parameters of the gates and experts of two mixtures, and of the gate whose expert always gives 0."""
    return inputs * 3862 * 5 + 3862 * 2


FRAMES_NORM = 2 * 1152
GATING = 1024 * 1024 + 2 * 1024


def assignment(width, clusters):
    """The parameters of a matrix and of a BatchNorm that replaces its biases."""
    return width * clusters + 2 * clusters


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FusedMLPConfig(towers={"rgb": 2048, "audio": 256}), 9_543_494),
        (MixtureOfExpertsConfig(), moe(1152)),
        (DbofConfig(), FRAMES_NORM + assignment(1152, 8192) + assignment(8192, 1024) + moe(1024)),
        # [x, h] W + b of 1024 cells twice, then the head on c and h of both
        (LstmConfig(), 4 * 1024 * (1152 + 1024 + 1 + 1024 + 1024 + 1) + moe(4096)),
        (GruConfig(), 3 * 1200 * (1152 + 1200 + 1 + 1200 + 1200 + 1) + moe(2400)),
        (
            SoftDbofConfig(clusters={"rgb": 8000, "audio": 1000}),
            FRAMES_NORM + assignment(1024, 8000) + assignment(128, 1000) + 9001 * 1024 + moe(1024),
        ),
        (
            GatedDbofConfig(clusters={"rgb": 4096, "audio": 512}),  # D1, D2 and their BatchNorm for rgb alone
            FRAMES_NORM + 3 * 1024 * 4096 + 4 * 4096 + assignment(128, 512) + 4609 * 1024 + moe(1024),
        ),
        (  # as many centres as weights of the assignments; 1024 * 256 + 128 * 128 = 278,528
            NetVladConfig(clusters={"rgb": 256, "audio": 128}),
            FRAMES_NORM + 2 * 278_528 + 2 * 384 + 278_529 * 1024 + GATING + moe(1024),
        ),
        (
            NetRVladConfig(clusters={"rgb": 256, "audio": 128}),
            FRAMES_NORM + 278_528 + 2 * 384 + 278_529 * 1024 + GATING + moe(1024),
        ),
        (  # and as many deviations; the hidden layer reads both moments
            NetFvConfig(clusters={"rgb": 128, "audio": 64}),
            FRAMES_NORM + 3 * 139_264 + 2 * 192 + (2 * 139_264 + 1) * 1024 + GATING + moe(1024),
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_number_of_parameters_at_the_published_settings(config, expected):
    assert count(on_meta(config)) == expected
