"""The training losses by name, of logits and sparse labels; reduction: mean over videos of the sum over classes.

    loss_of = build(config, class_weights_C)
    loss = loss_of(logits_BC, label_offsets, label_indices, rated_offsets=..., rated_indices=..., ...)

Shapes   B videos in the batch   C classes   L labels of the batch   R rated cells   K predictions kept of a teacher's
Labels and rated classes are ragged, as models/losses/cross_entropy.py has them, which is the loss by default. A cell
that is
not rated costs nothing. With p the sigmoid of a logit z, a cell of the others costs

    cross_entropy   -log(p + epsilon) where the video has the label, -log(1 - p + epsilon) where not
    hamming         the same of p clipped to [epsilon, 1 - epsilon]
    hinge           max(0, margin - z), max(0, margin + z)

and softmax is the cross-entropy between softmax(z) and the labels, 1/n each.

NOTE: As published, hinge and softmax see p for z: with p in [0, 1] the negatives of the hinge always pay at least its
margin, and a softmax of numbers in [0, 1] is nearly flat. `scores: probabilities` gives these, for comparison.
NOTE: Keras's clipping, which `hamming` has, takes the gradient from a cell that is wrong by more than 1 - epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.cross_entropy import sigmoid_cross_entropy, softplus_sums
from models.losses.penalties import Convention, LayerPenalty
from models.ragged import cells_of, rows_of
from models.tensors import upcast

Scores = Literal["logits", "probabilities"]

# What each kind reads beside what all of them do; defaults: as published, but for `scores`.
SETTINGS: dict[str, dict[str, float | Scores]] = {
    "sigmoid_cross_entropy": {},
    "cross_entropy": {"epsilon": 1e-5},
    "hinge": {"margin": 1.0, "scores": "logits"},
    "softmax": {"scores": "logits"},
    "hamming": {"epsilon": 1e-7},
    "weighted_hamming": {"epsilon": 1e-7, "class_weight_power": 1.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """A teacher whose probabilities are learned beside the labels: weight * CE(p, q) + (1 - weight) * the loss."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    predictions: str  # of the training videos: a file that tuner.predict wrote with --output FILE.safetensors
    weight: float = 0.5  # of the teacher's part; published: 0.5

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must be in (0, 1], but got {self.weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Settings of the training loss; the validation loss is always the plain sigmoid cross-entropy."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["sigmoid_cross_entropy", "cross_entropy", "hinge", "softmax", "hamming", "weighted_hamming"] = (
        "sigmoid_cross_entropy"
    )
    epsilon: float | None = None  # cross_entropy: beside p in the logarithm; hammings: least p. None: SETTINGS'
    margin: float | None = None  # hinge
    scores: Scores | None = None  # hinge, softmax: of logits, or of probabilities as published
    class_weight_power: float | None = None  # weighted_hamming: (mean n / n_c) ** power, by data.vocabulary's counts
    l1: float = 0.0  # times the mean (or sum) of |W| of every weight matrix
    l2: float = 0.0  # times half the mean (or sum) of W^2 of every weight matrix
    penalty: Convention = "mean"  # the mean, as published, does not grow with the matrix
    layers: Mapping[str, LayerPenalty] = field(default_factory=dict)  # {head: {l2: 1}}: of one layer, in place of these
    pos_weight_power: float = 0.0  # positives of class c weigh (N_c / n_c - 1) ** power; 0 = unweighted, published: 0.5
    pos_weight_max: float | None = None  # the largest of these weights allowed
    distill: DistillConfig | None = None  # learn from an ensemble's predictions too
    bootstrap: Literal["none", "per_batch", "fixed"] = "none"  # draw videos with replacement: anew each batch, or once

    def __post_init__(self) -> None:
        """Checks the ranges, and that no setting is given that the kind does not read."""
        if self.kind not in SETTINGS:
            raise ValueError(f"kind must be one of {', '.join(SETTINGS)}, but got {self.kind!r}")
        for name in ("epsilon", "margin", "scores", "class_weight_power"):
            value = getattr(self, name)
            if value is not None and name not in SETTINGS[self.kind]:
                has = ", ".join(SETTINGS[self.kind]) or "none of its own"
                raise ValueError(f"{name} has no effect on {self.kind}, which has {has}, but got {value}")
        if self.epsilon is not None and not 0 < self.epsilon < 0.5:
            raise ValueError(f"epsilon must be in (0, 0.5), but got {self.epsilon}")
        if self.margin is not None and not self.margin > 0:
            raise ValueError(f"margin must be positive, but got {self.margin}")
        for name in ("l1", "l2", "pos_weight_power", "class_weight_power"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative, but got {value}")
        if self.pos_weight_max is not None and not self.pos_weight_max > 0:
            raise ValueError(f"pos_weight_max must be positive, but got {self.pos_weight_max}")

    def setting(self, name: str) -> float:
        """The value of a setting of this kind: the given one, else the kind's default."""
        value = getattr(self, name)
        return float(SETTINGS[self.kind][name] if value is None else value)

    @property
    def of_probabilities(self) -> bool:
        """Whether the loss sees probabilities for logits."""
        return (self.scores or SETTINGS[self.kind].get("scores")) == "probabilities"


class Loss(Protocol):
    """What `build` returns; arguments and result as `sigmoid_cross_entropy` has them."""

    def __call__(
        self,
        logits_BC: Tensor,
        label_offsets: Tensor,
        label_indices: Tensor,
        *,
        rated_offsets: Tensor | None = None,
        rated_indices: Tensor | None = None,
        pos_weights_C: Tensor | None = None,
        example_weights_B: Tensor | None = None,
    ) -> Tensor:
        """A scalar."""


def build(config: LossConfig, class_weights_C: Tensor | None = None) -> Loss:
    """The loss that a configuration describes, without its penalties.

    Args:
        config: its settings.
        class_weights_C: what each class weighs, in weighted_hamming alone.
    """
    if config.kind == "sigmoid_cross_entropy":
        return sigmoid_cross_entropy
    if config.kind == "cross_entropy":
        positive = partial(_log_loss, epsilon=config.setting("epsilon"))
        return partial(sum_of_cells, positive, lambda z: positive(-z))
    if config.kind in ("hamming", "weighted_hamming"):
        clipped = partial(_clipped_log_loss, epsilon=config.setting("epsilon"))
        if config.kind == "weighted_hamming" and class_weights_C is None:
            raise ValueError("weighted_hamming needs class_weights_C, but got None")
        weights_C = class_weights_C if config.kind == "weighted_hamming" else None
        return partial(sum_of_cells, clipped, lambda z: clipped(-z), class_weights_C=weights_C)
    scored: Callable[[Tensor], Tensor] = torch.sigmoid if config.of_probabilities else lambda z: z
    if config.kind == "softmax":
        return partial(softmax_cross_entropy, scored)
    margin = config.setting("margin")
    return partial(sum_of_cells, lambda z: F.relu(margin - scored(z)), lambda z: F.relu(margin + scored(z)))


def _log_loss(logits: Tensor, epsilon: float) -> Tensor:
    return -(logits.sigmoid() + epsilon).log()


def _clipped_log_loss(logits: Tensor, epsilon: float) -> Tensor:
    return -logits.sigmoid().clamp(epsilon, 1 - epsilon).log()


def _mean(losses_B: Tensor, example_weights_B: Tensor | None) -> Tensor:
    """Over the videos, weighted; divided by their number all the same, not by the weights' sum, as published."""
    return (losses_B if example_weights_B is None else losses_B * example_weights_B).mean()


def sum_of_cells(
    positive: Callable[[Tensor], Tensor],
    negative: Callable[[Tensor], Tensor],
    logits_BC: Tensor,
    label_offsets: Tensor,
    label_indices: Tensor,
    *,
    rated_offsets: Tensor | None = None,
    rated_indices: Tensor | None = None,
    pos_weights_C: Tensor | None = None,
    example_weights_B: Tensor | None = None,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c v_c [w_c y positive(z) + (1 - y) negative(z)], over the rated cells; no dense target is made.

    Args:
        positive: logits of any shape -> what they cost where the video has the label.
        negative: the same where it has not.
        logits_BC: and the further arguments as `sigmoid_cross_entropy` has them.
        label_offsets: [B + 1].
        label_indices: [L].
        rated_offsets: [B + 1], or None.
        rated_indices: [R], or None.
        pos_weights_C: w_c.
        example_weights_B: e_b.
        class_weights_C: v_c.
    """
    logits_BC = upcast(logits_BC)
    rows = rows_of(label_offsets, label_indices)
    logits_L = logits_BC[rows, label_indices]
    corrections_L = positive(logits_L)
    if pos_weights_C is not None:
        corrections_L = pos_weights_C[label_indices] * corrections_L
    corrections_L = corrections_L - negative(logits_L)
    if class_weights_C is not None:
        corrections_L = class_weights_C[label_indices] * corrections_L
    if rated_offsets is None or rated_indices is None:
        costs_BC = negative(logits_BC)
        losses_B = costs_BC.sum(dim=1) if class_weights_C is None else costs_BC @ class_weights_C.to(costs_BC.dtype)
    else:
        rated_rows = rows_of(rated_offsets, rated_indices)
        costs_R = negative(logits_BC[rated_rows, rated_indices])
        if class_weights_C is not None:
            costs_R = class_weights_C[rated_indices] * costs_R
        losses_B = logits_BC.new_zeros(len(logits_BC)).index_add(0, rated_rows, costs_R.to(logits_BC.dtype))
    losses_B = losses_B.index_add(0, rows, corrections_L.to(losses_B.dtype))
    return _mean(losses_B, example_weights_B)


def softmax_cross_entropy(
    scored: Callable[[Tensor], Tensor],
    logits_BC: Tensor,
    label_offsets: Tensor,
    label_indices: Tensor,
    *,
    rated_offsets: Tensor | None = None,
    rated_indices: Tensor | None = None,
    pos_weights_C: Tensor | None = None,
    example_weights_B: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c -w_c y_c / n_b log softmax(s)_c, n_b the video's number of labels; without labels it costs 0.

    The softmax is over the rated classes.

    Args:
        scored: logits -> s.
        logits_BC: and the further arguments as `sigmoid_cross_entropy` has them.
        label_offsets: [B + 1].
        label_indices: [L].
        rated_offsets: [B + 1], or None.
        rated_indices: [R], or None.
        pos_weights_C: w_c.
        example_weights_B: e_b.
    """
    scores_BC = scored(upcast(logits_BC))
    rows = rows_of(label_offsets, label_indices)
    if rated_offsets is not None and rated_indices is not None:
        rated_BC = cells_of(rated_offsets, rated_indices, scores_BC.shape[1])
        scores_BC = scores_BC.masked_fill(~rated_BC, -torch.inf)
    # logsumexp and not log_softmax: of a video without a rated class nothing is looked up, and nothing is NaN.
    totals_B = scores_BC.logsumexp(dim=1)
    costs_L = (totals_B[rows] - scores_BC[rows, label_indices]) / label_offsets.diff()[rows]
    if pos_weights_C is not None:
        costs_L = pos_weights_C[label_indices] * costs_L
    losses_B = scores_BC.new_zeros(len(scores_BC)).index_add(0, rows, costs_L.to(scores_BC.dtype))
    return _mean(losses_B, example_weights_B)


def distillation(
    logits_BC: Tensor,
    classes_BK: Tensor,
    probabilities_BK: Tensor,
    example_weights_B: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c [softplus(z) - q z]: cross-entropy against a teacher's probabilities q, who rates every class.

    Args:
        logits_BC: [B, C].
        classes_BK: [B, K] int64, each class of a video once; q of the others is 0.
        probabilities_BK: [B, K], q of these.
        example_weights_B: e_b.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    logits_BC = upcast(logits_BC)
    taught_B = (probabilities_BK.to(logits_BC.dtype) * logits_BC.gather(1, classes_BK)).sum(dim=1)
    losses_B = softplus_sums(logits_BC, logits_BC.dtype) - taught_B
    return _mean(losses_B, example_weights_B)
