"""What every model guarantees."""

import dataclasses
import io

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
from models.layers import Dropout
from models.layers.batch_norm import batch_norms
from models.losses import sigmoid_cross_entropy
from models.video.mixture_of_experts import MixtureOfExpertsConfig
from tests.support.operator_trace import host_looks
from tests.support.video_features import SIZES, features, statistics

FRAMES = Sizes(features={"rgb": 24, "audio": 8}, num_classes=11, level="frame")
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


def build(kind, seed=0):
    return models.build(SMALL[kind], sizes_of(kind), statistics(), torch.Generator().manual_seed(seed))


def sizes_of(kind):
    return {"video": SIZES, "frame": FRAMES}[models.CONFIGS[kind].level]


def frames(num_videos=6, num_frames=7, seed=3):
    """Bytes [B, T, D], and a mask that leaves each video between one frame and all of them."""
    generator = torch.Generator().manual_seed(seed)
    frames_BTD = torch.randint(0, 256, (num_videos, num_frames, FRAMES.width), generator=generator, dtype=torch.uint8)
    lengths_B = torch.randint(1, num_frames + 1, (num_videos,), generator=generator)
    lengths_B[0] = num_frames
    mask_BT = torch.arange(num_frames) < lengths_B[:, None]
    return frames_BTD * mask_BT[..., None], mask_BT


def inputs(kind, num_videos=6, seed=3):
    """The inputs of a model of this kind."""
    if models.CONFIGS[kind].level == "frame":
        return frames(num_videos, seed=seed)
    return (features(num_videos, seed),)


def labels(num_videos=6):
    """Video b has the label b."""
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

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_step_never_makes_the_host_wait(self, kind, dtype):
        model, given, targets = build(kind), inputs(kind), labels()

        def step():
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = sigmoid_cross_entropy(model(*given), *targets)
            loss.backward()

        assert host_looks(step) == {}

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

    def test_in_training_only_batch_norms_and_chance_tie_a_video_to_its_neighbours(self, kind):
        """So the guards of `batch_norms`, for contrastive batches and for several ranks, know all such layers."""
        model = build(kind)
        for module in [*batch_norms(model), *(part for part in model.modules() if isinstance(part, Dropout))]:
            module.eval()
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
        model(*frames())  # gives running statistics that are not the initial ones
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
        """BatchNorm's statistics above all must not depend on padding."""
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
