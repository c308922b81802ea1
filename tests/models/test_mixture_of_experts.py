"""The mixture of experts, against its definition in probabilities."""

import pytest
import torch

import models
from models import FeatureStatistics, Sizes
from models.video.mixture_of_experts import Mixture, MixtureOfExpertsConfig

D, C = 5, 4


def mixture(**settings):
    return Mixture(D, C, torch.Generator().manual_seed(0), **settings)


def inputs(scale=1.0):
    return scale * torch.randn(9, D, generator=torch.Generator().manual_seed(1))


def probabilities(model, x):
    """The logits by the definition, in float64."""
    gates = model.double().gates(x.double()).view(len(x), C, -1).softmax(dim=2)
    experts = model.experts(x.double()).view(len(x), C, -1).sigmoid()
    return (gates[..., :-1] * experts).sum(dim=2)


def test_the_published_vector():
    model = Mixture(2, 1)
    with torch.no_grad():
        model.gates.weight.copy_(torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).T)
        model.experts.weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.25]]).T)
        model.experts.bias.copy_(torch.tensor([0.0, 0.1]))
    assert model(torch.tensor([[0.5, -1.0]])).sigmoid().item() == pytest.approx(0.2893006, abs=1e-7)


def test_a_classs_gates_and_experts_lie_side_by_side():
    """As in the source: row c (M + 1) + m of the gates, row c M + m of the experts."""
    model = mixture()
    before = model(inputs())
    with torch.no_grad():
        model.gates.weight[2 * 3 : 3 * 3] += 1
        model.experts.weight[2 * 2 : 3 * 2] += 1
    assert (model(inputs()) != before).any(dim=0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("settings", [{}, {"mixtures": 1}, {"mixtures": 4}, {"low_rank": 2}])
def test_logits_are_the_log_odds_of_the_definition(settings):
    model = mixture(**settings)
    logits = model(inputs())
    torch.testing.assert_close(logits.double().sigmoid(), probabilities(model, inputs()), rtol=1e-5, atol=1e-7)


def test_they_stay_exact_where_probabilities_are_rounded():
    """With experts of -200 and gates of 1/3 each, p = 2/3 e^-200: 0 in float32, and log p = -200.405."""
    model = mixture()
    with torch.no_grad():
        model.gates.weight.zero_()
        model.experts.weight.zero_()
        model.experts.bias.fill_(-200.0).requires_grad_(True)
    logits = model(inputs())
    torch.testing.assert_close(logits, torch.full_like(logits, -200.405465), rtol=1e-6, atol=0)
    logits.sum().backward()
    assert model.experts.bias.grad.sum().item() == pytest.approx(9 * C, rel=1e-5)  # d logit / d e is 1 there


def test_the_expert_that_says_no_keeps_a_certain_class_below_one():
    """With certain experts, p = 1 - (gate of the expert that gives 0) = 2/3."""
    model = mixture()
    with torch.no_grad():
        model.gates.weight.zero_()
        model.experts.bias.fill_(1000.0)
    torch.testing.assert_close(model(inputs()).sigmoid(), torch.full((9, C), 2 / 3))


def test_low_rank_gates_have_fewer_weights():
    whole, low = mixture(), mixture(low_rank=2)
    assert sum(p.numel() for p in whole.gates.parameters()) == D * C * 3
    assert sum(p.numel() for p in low.gates.parameters()) == D * 2 + 2 * C * 3


@pytest.mark.parametrize("kind", ["probabilities", "inputs"])
def test_probability_gating_multiplies_each_probability(kind):
    model = mixture(probability_gating=kind).eval()
    with torch.no_grad():
        model.gating.norm.running_mean.uniform_(-1, 1)
        model.gating.norm.bias.uniform_(-1, 1)
    logits = model(inputs())
    p = probabilities(model, inputs())
    gate = model.gating.norm(model.gating.linear(p if kind == "probabilities" else inputs().double())).sigmoid()
    torch.testing.assert_close(logits.double().sigmoid(), p * gate, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kind", "width"), [("probabilities", 400), ("inputs", 50)])
def test_probability_gating_starts_as_published(kind, width):
    """Drawn from N(0, 1 / sqrt(C)), with no biases but BatchNorm's, also where the gate reads the D inputs."""
    linear = Mixture(50, 400, torch.Generator().manual_seed(0), probability_gating=kind).gating.linear
    assert linear.weight.shape == (400, width) and linear.bias is None
    assert linear.weight.std().item() == pytest.approx(0.05, rel=0.05)


def test_a_gated_class_is_never_certain():
    """This follows from the form p * sigmoid(s), not from the mixture: here p is 1 and the result sigmoid(s)."""
    model = mixture(mixtures=1, probability_gating="probabilities").eval()
    with torch.no_grad():
        model.gates.weight.zero_().view(C, 2, D)[:, 0] = 1000.0  # the experts' gates are 1 where x is positive
        model.experts.bias.fill_(1000.0)
    x = torch.ones(2, D)
    s = model.gating.norm(model.gating.linear(torch.ones(2, C)))
    torch.testing.assert_close(model(x), s, rtol=1e-5, atol=1e-5)
    model.gating = None
    assert (model(x).sigmoid() == 1).all()


@pytest.mark.parametrize("mixtures", [1, 2, 4])
def test_it_starts_at_the_classes_frequencies(mixtures):
    counts = torch.tensor([0, 3, 60, 500, 999])
    statistics = FeatureStatistics(
        num_videos=1000, mean_D=torch.zeros(D), variance_D=torch.ones(D), label_counts_C=counts
    )
    model = models.build(
        MixtureOfExpertsConfig(mixtures=mixtures), Sizes(features={"a": D}, num_classes=5), statistics
    ).eval()
    expected = ((counts + 0.5) / 1001).clamp(max=0.99 * mixtures / (mixtures + 1))
    torch.testing.assert_close(model(torch.zeros(1, D)).sigmoid()[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixtures": 0}, "mixtures must be from 1 to 16,777,216, but got 0"),
        ({"low_rank": 0}, "low_rank must be from 1 to 16,777,216, but got 0"),
        ({"batch_norm_momentum": 0.0}, r"batch_norm_momentum must be in \(0, 1\], but got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExpertsConfig(**settings)
