"""The table of training losses: what `loss.kind` may be, and which settings have an effect on it.

To add a loss, write a file with a function that takes the loss's settings by name and returns the loss, and give it an
entry in LOSSES. A setting that no other loss has also needs a field in models/losses/config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from models.losses.cells import Loss
from models.losses.cross_entropy import cross_entropy
from models.losses.hamming import hamming, weighted_hamming
from models.losses.hinge import hinge
from models.losses.softmax import softmax
from models.losses.sparse_cross_entropy import sigmoid_cross_entropy


@dataclass(frozen=True, slots=True)
class LossKind:
    """A loss and its settings."""

    make: Callable[..., Loss]  # takes the settings by name
    settings: Mapping[str, float | str] = field(default_factory=dict)  # those with an effect, and their defaults


LOSSES: Mapping[str, LossKind] = {
    "sigmoid_cross_entropy": LossKind(lambda: sigmoid_cross_entropy),
    "cross_entropy": LossKind(cross_entropy, {"epsilon": 1e-5}),
    "hinge": LossKind(hinge, {"margin": 1.0, "scores": "logits"}),
    "softmax": LossKind(softmax, {"scores": "logits"}),
    "hamming": LossKind(hamming, {"epsilon": 1e-7}),
    "weighted_hamming": LossKind(weighted_hamming, {"epsilon": 1e-7, "class_weight_power": 1.0}),
}
