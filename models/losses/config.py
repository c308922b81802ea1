"""Settings of the training loss, and the loss that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

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

    predictions: str  # of the training videos: a file that tuner.predict wrote with --output FILE.safetensors
    weight: float = 0.5  # of the teacher's part

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must be in (0, 1], but got {self.weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Settings of the training loss; the validation loss is always the plain sigmoid cross-entropy."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Kind = "sigmoid_cross_entropy"
    # Those of a kind; None: its default in models/losses/registry.py.
    epsilon: float | None = None  # cross_entropy: added to p in the logarithm; hamming, weighted_hamming: least p
    margin: float | None = None  # hinge
    scores: Scores | None = None  # hinge, softmax: whether a score is a logit, or a probability as in their sources
    class_weight_power: float | None = None  # weighted_hamming: (mean n / n_c) ** power, with data.vocabulary's counts
    # Those of every kind.
    l1: float = 0.0  # times the mean (or sum) of |W| of every weight matrix
    l2: float = 0.0  # times half the mean (or sum) of W^2 of every weight matrix
    penalty: Convention = "mean"  # the mean, as in lidalei/youtube-8m, does not grow with the size of a matrix
    layers: Mapping[str, LayerPenalty] = field(default_factory=dict)  # l1, l2 of one layer instead: {head: {l2: 1}}
    pos_weight_power: float = 0.0  # positives of class c weigh (N_c / n_c - 1) ** power; 0: all weigh 1; lidalei: 0.5
    pos_weight_max: float | None = None  # larger weights of positives are cut to this
    distill: DistillConfig | None = None  # learn from the predictions of an ensemble too
    bootstrap: Literal["none", "per_batch", "fixed"] = "none"  # draw videos with replacement: for each batch, or once

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
