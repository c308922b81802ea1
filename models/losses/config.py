"""Settings of the training loss, and the loss that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from torch import Tensor

from data.ranges import TINY, Factor, Fraction, Positive, Power, Range, check_ranges
from models.losses.cells import Loss, Scores
from models.losses.penalties import Convention, LayerPenalty
from models.losses.registry import LOSSES

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(LOSSES)]  # read at run time: by pydantic, by the errors and by the documentation


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """A teacher whose probabilities q are learned too: weight * cross_entropy(p, q) + (1 - weight) * loss."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Safetensors file with predictions for the training videos, which `python -m tuner.predict` with --output
    # FILE.safetensors writes.
    predictions: str
    weight: Fraction = 0.5  # share of the teacher's predictions in the loss; the labels have the rest

    def __post_init__(self) -> None:
        """Checks the range."""
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Settings of the training loss. Validation always uses sigmoid_cross_entropy, without weights and penalties."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # What is minimised. sigmoid_cross_entropy: the cross-entropy, computed from the logits. cross_entropy, hinge,
    # softmax: the losses of google/youtube-8m. hamming, weighted_hamming: the cross-entropy of clipped probabilities.
    kind: Kind = "sigmoid_cross_entropy"
    # cross_entropy: number added to a probability in the logarithm; null: 1e-05. hamming, weighted_hamming: smallest
    # probability, to which smaller ones are raised; null: 1e-07.
    epsilon: Annotated[float, Range(TINY, 0.5, "high")] | None = None
    # hinge: a label costs nothing if its score is at least this number, another class nothing if its score is at most
    # minus this number; null: 1.
    margin: Positive | None = None
    # hinge, softmax: what the loss takes as the score of a class: the logit, or the probability as in
    # google/youtube-8m; null: logits.
    scores: Scores | None = None
    # weighted_hamming: class c has the weight (m / n_c) ** power, with n_c the TrainVideoCount of the class in
    # data.vocabulary, and m their mean over the classes; null: 1.
    class_weight_power: Power | None = None
    # Factor of the penalty that is added to the loss for each weight matrix W: the mean (or sum, see `penalty`) of |W|.
    l1: Factor = 0.0
    # Factor of the penalty that is added to the loss for each weight matrix W: half the mean (or sum, see `penalty`) of
    # W^2.
    l2: Factor = 0.0
    # Whether l1 and l2 take the mean or the sum over a matrix; the mean, as in lidalei/youtube-8m, does not grow with
    # the size of the matrix.
    penalty: Convention = "mean"
    # The penalties of single layers, in place of l1 and l2 of the whole model, by the layer's name in the model: {head:
    # {l2: 1}}.
    layers: Mapping[str, LayerPenalty] = field(default_factory=dict)
    # A label of class c has the weight (N_c / n_c - 1) ** power, with N_c the number of training videos that are rated
    # for the class, and n_c the number of those that have it. 0: every label has the weight 1. lidalei/youtube-8m has
    # 0.5.
    pos_weight_power: Power = 0.0
    # Largest weight that pos_weight_power may give to a label; null: no limit.
    pos_weight_max: Annotated[float, Range(TINY, 1e9)] | None = None
    # A teacher, for example an ensemble, whose predictions are learned beside the labels; null: none.
    distill: DistillConfig | None = None
    # Whether training videos are drawn with replacement. none: no. per_batch: anew within each batch. fixed: one draw
    # for the whole trial.
    bootstrap: Literal["none", "per_batch", "fixed"] = "none"

    def __post_init__(self) -> None:
        """Checks the ranges, and refuses a setting that has no effect on the kind."""
        if self.kind not in LOSSES:
            raise ValueError(f"kind must be one of {', '.join(LOSSES)}, but got {self.kind!r}")
        has = LOSSES[self.kind].settings
        for name in ("epsilon", "margin", "scores", "class_weight_power"):
            value = getattr(self, name)
            if value is not None and name not in has:
                known = ", ".join(has) or "none of its own"
                raise ValueError(f"{name} has no effect on {self.kind}, which has {known}, but got {value}")
        check_ranges(self)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the kind: the given values, and its defaults for the others."""
        defaults = LOSSES[self.kind].settings
        given = {name: getattr(self, name) for name in defaults}
        return {name: default if given[name] is None else given[name] for name, default in defaults.items()}


def build(config: LossConfig, class_weights_C: Tensor | None = None) -> Loss:
    """Builds the loss of a configuration, without its penalties.

    Args:
        config: its settings.
        class_weights_C: the weight of each class, for a kind with `class_weight_power`; else without effect.

    Raises:
        ValueError: the kind has `class_weight_power`, and class_weights_C is None.
    """
    settings = config.settings
    if "class_weight_power" in settings:
        del settings["class_weight_power"]  # class_weights_C was computed with it
        settings["class_weights_C"] = class_weights_C
    return LOSSES[config.kind].make(**settings)
