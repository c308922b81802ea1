"""Nothing that a training step calls beside the model makes the host wait for a GPU: losses, optimizers, contrast."""

import pytest
import torch

from models import losses, optim
from models.losses.penalties import add_penalty_gradients, penalised, penalty
from models.losses.weights import per_batch_bootstrap_weights
from models.optim import ClipConfig
from models.optim.averaging import Average, AverageConfig
from models.optim.rmsprop_tf import RMSpropTF
from tests.models import test_contrast, test_losses, test_models, test_optimizers
from tests.support.operator_trace import host_looks

OFFSETS, INDICES = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 4, 1])
RATED = {"rated_offsets": torch.tensor([0, 3, 4, 6]), "rated_indices": torch.tensor([0, 2, 4, 3, 1, 2])}
WEIGHTS = {"pos_weights_C": torch.linspace(1, 3, 5), "example_weights_B": torch.tensor([1.0, 0.0, 2.0])}


@pytest.mark.parametrize("rated", [{}, RATED], ids=["all rated", "some rated"])
@pytest.mark.parametrize("kind", test_losses.KINDS)
def test_a_loss_and_its_gradient(kind, rated):
    loss_of = losses.build(test_losses.KINDS[kind], torch.linspace(0.5, 3, 5))
    logits = torch.randn(3, 5, requires_grad=True)
    assert host_looks(lambda: loss_of(logits, OFFSETS, INDICES, **rated, **WEIGHTS).backward()) == {}


def test_a_teacher_and_a_bootstrap():
    logits, classes = torch.randn(3, 5, requires_grad=True), torch.tensor([[0, 1], [2, 3], [4, 0]])
    generator = torch.Generator()

    def step():
        weights = per_batch_bootstrap_weights(3, generator)
        losses.distillation(logits, classes, torch.full((3, 2), 0.5), weights).backward()

    assert host_looks(step) == {}


@pytest.mark.parametrize("convention", ["mean", "sum"])
def test_penalties(convention):
    model = test_models.build("fused_mlp")
    entries = penalised(model, l1=0.1, l2=0.1)
    assert host_looks(lambda: penalty(entries, convention).backward()) == {}
    assert host_looks(lambda: add_penalty_gradients(entries, convention)) == {}


@pytest.mark.parametrize("clip", ["none", "per_variable", "global"])
@pytest.mark.parametrize("config", test_optimizers.KINDS.values(), ids=test_optimizers.KINDS)
def test_a_step_of_an_optimizer_that_may_be_skipped(config, clip):
    parameters = test_optimizers.weights()
    optimizer = optim.build(config, parameters)
    if isinstance(optimizer, RMSpropTF):
        optimizer.foreach = True  # as on CUDA; that of a CPU is in test_optimizers.py
    test_optimizers.give_gradients(parameters, seed=1)
    optim.step(optimizer, skip=torch.tensor(False))  # the first step makes the state
    for skip in (None, torch.tensor(False), torch.tensor(True)):

        def step(skip=skip):
            optim.clip(parameters, ClipConfig(kind=clip))
            optim.step(optimizer, skip=skip)

        assert host_looks(step) == {}


def test_the_average_of_the_weights():
    model = test_models.build("fused_mlp")
    average = Average(model, AverageConfig(decay=0.9))
    assert host_looks(lambda: average.update(model)) == {}


@pytest.mark.parametrize("cross", [None, test_contrast.CrossModalConfig(mix=1.0)], ids=["views", "cross-modal"])
@pytest.mark.parametrize("norm", test_contrast.NORMS)
@pytest.mark.parametrize("kind", test_contrast.METHODS)
def test_a_contrastive_step(kind, norm, cross):
    contrast = test_contrast.build(kind, norm, cross)
    x, generator = test_contrast.features(), test_contrast.drawn()
    assert host_looks(lambda: contrast(x, 0.5, generator).loss.backward()) == {}
