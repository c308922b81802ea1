"""The average of weights against its definition, with buffers and from the first step on."""

import pytest
import torch
from torch import nn

from models.optim import Average, AverageConfig


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def moved(live, seed):
    """Changes weights and running statistics, as a step would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in live.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else tensor + 1)
    return {name: tensor.clone() for name, tensor in live.state_dict().items()}


def test_the_average_is_the_debiased_mean_of_the_weights_seen():
    live = model()
    average = Average(live, AverageConfig(decay=0.9))
    seen = []
    for step in range(1, 6):
        seen.append(moved(live, step))
        average.update(live)
        shares = torch.tensor([0.9 ** (step - i) for i in range(1, step + 1)])
        for name, tensor in average.model.state_dict().items():
            if tensor.is_floating_point():
                stack = torch.stack([past[name] for past in seen])
                torch.testing.assert_close(tensor, torch.einsum("t,t...->...", shares / shares.sum(), stack))
    assert average.model.state_dict()["1.num_batches_tracked"] == 5  # counted, not averaged


def test_the_first_step_is_all_of_the_first_average():
    """An average that starts at the initial weights would still consist of them to 99.9 %."""
    live = model()
    average = Average(live, AverageConfig(decay=0.999))
    first = moved(live, 1)
    average.update(live)
    for name, tensor in average.model.state_dict().items():
        assert torch.equal(tensor, first[name])


def test_running_statistics_belong_to_the_same_steps_as_the_weights():
    """With copies from the trained model, the averaged one would normalise by another model's statistics."""
    live = model()
    average = Average(live, AverageConfig(decay=0.5))
    means = []
    for step in (1, 2):
        means.append(moved(live, step)["1.running_mean"])
        average.update(live)
    torch.testing.assert_close(average.model.state_dict()["1.running_mean"], (0.5 * means[0] + means[1]) / 1.5)


def test_decay_0_is_the_live_model():
    live = model()
    average = Average(live, AverageConfig(decay=0.0))
    for step in (1, 2):
        last = moved(live, step)
        average.update(live)
    for name, tensor in average.model.state_dict().items():
        assert torch.equal(tensor, last[name])


def test_a_step_weighs_half_after_the_half_life():
    assert AverageConfig(half_life=2000).rate ** 2000 == pytest.approx(0.5)
    assert pytest.approx(0.368, abs=1e-3) == (1 - 1 / 2000) ** 2000  # what the winner of 2018 calls half-life


def test_the_average_is_no_part_of_the_training():
    live = model()
    average = Average(live, AverageConfig(decay=0.9))
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not average.model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either decay or half_life, but got None and None"),
        ({"decay": 0.9, "half_life": 10.0}, "give either decay or half_life, but got 0.9 and 10.0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), but got 1.0"),
        ({"half_life": 0.0}, r"half_life must be from 0.001 to 1e\+09, but got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AverageConfig(**settings)
