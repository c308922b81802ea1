"""From stored frames to one row for each video."""

import pytest
import torch

import data.schema
import models
from models import FeatureStatistics, Sizes
from models.frame.average_logistic import AverageLogisticConfig
from models.frame.parts.frames import FrameBatchNorm, FrameInput, dequantised, masked_max, masked_mean

MASK = torch.tensor([[True, True, False], [True, False, False]])


def statistics(width=2):
    return FeatureStatistics(
        num_videos=10,
        mean_D=torch.full((width,), 0.5),
        variance_D=torch.full((width,), 4.0),
        label_counts_C=torch.tensor([1, 5]),
    )


def test_bytes_stand_for_the_published_values():
    values = dequantised(torch.tensor([[[0, 127, 128, 255]]], dtype=torch.uint8))[0, 0]
    assert values.tolist() == pytest.approx([-1.9921875, -0.0000306, 0.0156556, 2.0078125], abs=1e-6)


def test_floats_are_taken_as_they_are():
    assert dequantised(torch.tensor([[[0.25]]], dtype=torch.float16)).tolist() == [[[0.25]]]


def test_padding_stays_zero_whatever_stands_there():
    """Dequantised it would be -1.99, standardised something else again."""
    frames = torch.full((2, 3, 2), 7, dtype=torch.uint8)
    for kind in ("standard", "l2", "none"):
        x = FrameInput(kind, statistics())(frames, MASK)
        assert not x[~MASK].any() and x[MASK].all(), kind


def test_l2_is_over_all_features_of_a_frame_together():
    frames = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]]])
    x = FrameInput("l2", statistics())(frames, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(x[0], torch.tensor([[0.6, 0.8], [0.0, 0.0], [1e-3, 0.0]]))  # epsilon: 1e-12 of x^2


def test_standard_is_by_the_statistics_of_frames():
    x = FrameInput("standard", statistics())(torch.tensor([[[2.5, 0.5]]]), torch.ones(1, 1, dtype=torch.bool))
    assert x[0, 0].tolist() == [1.0, 0.0]


def test_mean_and_maximum_are_of_the_real_frames_alone():
    x = torch.tensor([[[-1.0], [-3.0], [9.0]], [[-2.0], [9.0], [9.0]]])
    assert masked_mean(x, MASK).tolist() == [[-2.0], [-2.0]]
    assert masked_max(x, MASK).tolist() == [[-1.0], [-2.0]]


def test_without_a_frame_mean_and_maximum_are_zero():
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert masked_mean(torch.ones(1, 3, 2), nothing).tolist() == masked_max(torch.ones(1, 3, 2), nothing).tolist()
    assert not masked_max(torch.ones(1, 3, 2), nothing).any()


@pytest.mark.parametrize("kind", ["standard", "l2", "none"])
def test_frames_of_any_layout_are_normalised_alike_and_floats_keep_their_gradient(kind):
    frame_input = FrameInput(kind, statistics(900))  # so wide that the frames come in several pieces
    bytes_TBD = torch.randint(0, 256, (70, 3, 900), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = torch.arange(70) < torch.tensor([70, 31, 2])[:, None]
    found = frame_input(bytes_TBD.transpose(0, 1), mask)
    assert torch.equal(found, frame_input(bytes_TBD.transpose(0, 1).contiguous(), mask))
    floats = dequantised(bytes_TBD).transpose(0, 1).requires_grad_()
    with_gradient = frame_input(floats, mask)
    torch.testing.assert_close(with_gradient, found)
    with_gradient.sum().backward()
    assert floats.grad[mask].any() and not floats.grad[~mask].any()


class TestFrameBatchNorm:
    def test_its_statistics_are_those_of_the_real_frames(self):
        """Published code counts the padding in, which here would make the mean 2 and not 4."""
        x = torch.tensor([[[2.0], [4.0], [0.0]], [[6.0], [0.0], [0.0]]])
        norm = FrameBatchNorm(1, momentum=1.0)
        found = norm(x, MASK)
        assert norm.norm.running_mean.item() == pytest.approx(4.0)
        assert norm.norm.running_var.item() == pytest.approx(4.0)  # unbiased, of 2, 4, 6
        expected = (torch.tensor([2.0, 4.0, 6.0]) - 4) / (8 / 3 + 1e-3) ** 0.5
        torch.testing.assert_close(found[MASK][:, 0], expected)
        assert not found[~MASK].any()

    @pytest.mark.parametrize("units", [1, 5, 3000])  # more and fewer than a piece of the batch has rows
    def test_output_and_gradients_are_torchs_on_the_real_frames_alone(self, units):
        generator = torch.Generator().manual_seed(0)
        mask = torch.arange(40) < torch.tensor([40, 3, 0, 17, 1])[:, None]
        x = torch.randn(5, 40, units, generator=generator) * 3 + 40  # a mean that one pass would lose digits to
        grad = torch.randn(5, 40, units, generator=generator)
        norm, torchs = FrameBatchNorm(units, momentum=0.3), torch.nn.BatchNorm1d(units, eps=1e-3, momentum=0.3).double()
        with torch.no_grad():
            norm.norm.weight.uniform_(0.5, 2, generator=generator)
            norm.norm.bias.normal_(generator=generator)
            torchs.load_state_dict(norm.norm.state_dict())
        ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
        found, expected = norm(ours, mask), torchs(theirs[mask])
        found.backward(grad)
        expected.backward(grad[mask].double())
        assert not found[~mask].any() and not ours.grad[~mask].any()
        for a, b in (
            (found[mask], expected),
            (ours.grad, theirs.grad),
            (norm.norm.weight.grad, torchs.weight.grad),
            (norm.norm.bias.grad, torchs.bias.grad),
            (norm.norm.running_mean, torchs.running_mean),
            (norm.norm.running_var, torchs.running_var),
        ):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)
        assert norm.norm.num_batches_tracked == 1

    @pytest.mark.parametrize("frames", [0, 1])
    def test_fewer_than_two_frames_leave_everything_finite(self, frames):
        norm, mask = FrameBatchNorm(3, momentum=0.5), torch.zeros(2, 3, dtype=torch.bool)
        mask[1, :frames] = True
        x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        norm(x, mask).sum().backward()
        assert x.grad.isfinite().all() and all(tensor.isfinite().all() for tensor in norm.state_dict().values())

    def test_half_precision_frames_have_float32_statistics(self):
        x = (torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)) + 40).bfloat16()
        half, whole = FrameBatchNorm(3, momentum=0.5), FrameBatchNorm(3, momentum=0.5)
        found = half(x.requires_grad_(), MASK)
        found.sum().backward()
        assert found.dtype == x.grad.dtype == torch.bfloat16
        torch.testing.assert_close(found, whole(x.float(), MASK).bfloat16(), rtol=0, atol=0)
        assert torch.equal(half.norm.running_mean, whole.norm.running_mean)

    def test_groups_are_refused(self):
        norm = FrameBatchNorm(1, momentum=0.5)
        norm.norm.groups = 2
        with pytest.raises(ValueError, match="groups must be 1 over ranks and over rows that are real, but got 2"):
            norm(torch.zeros(2, 3, 1), MASK)

    def test_in_evaluation_it_is_a_frame_at_a_time(self):
        norm = FrameBatchNorm(3, momentum=0.5)
        x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
        norm(x, MASK)
        norm.eval()
        torch.testing.assert_close(norm(x, MASK)[:, :1], norm(x[:, :1], MASK[:, :1]))
        assert not norm(x, MASK)[~MASK].any()


def test_average_logistic_is_linear_in_the_mean_of_the_normalised_frames():
    sizes = Sizes(features={"rgb": 2}, num_classes=2, level="frame")
    model = models.build(AverageLogisticConfig(), sizes, statistics())
    frames = torch.tensor([[[3.0, 4.0], [4.0, -3.0], [5.0, 5.0]], [[0.0, 2.0], [1.0, 1.0], [1.0, 1.0]]])
    means = torch.tensor([[0.7, 0.1], [0.0, 1.0]])
    torch.testing.assert_close(model(frames, MASK), means @ model.head.weight.T + model.head.bias)


def test_a_model_dequantises_every_byte_as_the_schema_defines_it():
    every_byte = torch.arange(256, dtype=torch.uint8)
    expected = every_byte.float() * data.schema.DEQUANTISE_SCALE + data.schema.DEQUANTISE_SHIFT
    assert torch.equal(dequantised(every_byte), expected)
