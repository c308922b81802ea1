"""Penalties by both conventions and by layer, and their gradients against autograd."""

import pytest
import torch
from torch import nn

from models.losses.penalties import LayerPenalty, Penalised, add_penalty_gradients, penalised, penalty

MATRICES = [torch.tensor([[1.0, -2.0], [0.0, 4.0]]), torch.tensor([[3.0, -5.0]])]


def entries(l1, l2, matrices=MATRICES):
    return [Penalised(matrix, l1, l2) for matrix in matrices]


@pytest.mark.parametrize(
    ("l1", "l2", "convention", "expected"),
    [
        (1.0, 0.0, "mean", 7 / 4 + 8 / 2),
        (0.0, 1.0, "mean", 21 / 8 + 34 / 4),
        (1.0, 0.0, "sum", 7 + 8),
        (0.0, 1.0, "sum", 21 / 2 + 34 / 2),
        (0.5, 2.0, "mean", 0.5 * (7 / 4 + 8 / 2) + 2 * (21 / 8 + 34 / 4)),
        (0.0, 0.0, "mean", 0.0),
    ],
)
def test_penalties_by_both_conventions(l1, l2, convention, expected):
    assert penalty(entries(l1, l2), convention).item() == pytest.approx(expected)


@pytest.mark.parametrize("convention", ["mean", "sum"])
@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7), (0.0, 0.0)])
def test_penalty_gradients_in_place_equal_autograd(l1, l2, convention):
    ours = [m.clone().requires_grad_() for m in MATRICES]
    theirs = [m.clone().requires_grad_() for m in MATRICES]
    sum(m.sin().sum() for m in ours).backward()
    add_penalty_gradients(entries(l1, l2, ours), convention)
    (sum(m.sin().sum() for m in theirs) + penalty(entries(l1, l2, theirs), convention)).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_penalty_gradients_before_backward_are_refused():
    with pytest.raises(ValueError, match="call backward first"):
        add_penalty_gradients(entries(1.0, 0.0, [torch.ones(2, 2, requires_grad=True)]))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.clusters = nn.Parameter(torch.ones(1, 4, 2))  # like the centres of NetVLAD; not among the regularized
        self.head = nn.Linear(4, 5)

    @property
    def regularized(self):
        return [self.tower[0].weight, self.tower[2].weight, self.head.weight]


def by_name(model, **penalties):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(matrix)]: (l1, l2) for matrix, l1, l2 in penalised(model, **penalties)}


def test_without_layers_the_regularized_matrices_pay():
    assert by_name(Model(), l2=2.0) == dict.fromkeys(("tower.0.weight", "tower.2.weight", "head.weight"), (0.0, 2.0))
    assert by_name(Model()) == {}


def test_a_layer_pays_its_own_in_place_of_the_models():
    layers = {"head": LayerPenalty(l2=1e-8), "tower.2": LayerPenalty(), "clusters": LayerPenalty(l1=3.0)}
    assert by_name(Model(), l1=1.0, layers=layers) == {
        "tower.0.weight": (1.0, 0.0),
        "head.weight": (0.0, 1e-8),
        "clusters": (3.0, 0.0),
    }


def test_of_two_prefixes_the_longer_one_counts():
    layers = {"tower": LayerPenalty(l2=1.0), "tower.2": LayerPenalty(l2=5.0)}
    assert by_name(Model(), layers=layers) == {"tower.0.weight": (0.0, 1.0), "tower.2.weight": (0.0, 5.0)}


@pytest.mark.parametrize("layer", ["haed", "tow", "tower.1", "head.bias"])
def test_a_layer_without_a_matrix_is_refused_with_those_that_have_one(layer):
    with pytest.raises(ValueError, match=f"no layer '{layer}'; those with .* are clusters, tower.0, tower.2, head"):
        penalised(Model(), layers={layer: LayerPenalty(l2=1.0)})


def test_layer_penalties_are_not_negative():
    with pytest.raises(ValueError, match=r"l2 must be from 0 to 1e\+09, but got -1"):
        LayerPenalty(l2=-1)
