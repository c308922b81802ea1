"""What a supervised trial minimises over a batch, beside penalties: its loss by name, with all its weights.

Shapes   B videos in the batch   C classes   N rows of the training data
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models import loss_weights, losses
from models.losses import LossConfig
from tuner import vocabulary
from tuner.errors import ConfigError
from tuner.ranks import Ranks

if TYPE_CHECKING:
    from tuner.supervised import TrainingData


class Objective:
    """The data term of a trial: everything that stays the same from batch to batch, prepared once."""

    def __init__(
        self,
        config: LossConfig,
        data: TrainingData,
        *,
        batch_size: int,
        part_size: int,
        bootstrap: torch.Generator,
        device: torch.device,
        seed: int,
        ranks: Ranks,
    ) -> None:
        """Prepares the weights.

        Args:
            config: the loss.
            data: whose counts weigh the classes.
            batch_size: videos a step, on all ranks together.
            part_size: of them at a time, where gradients are accumulated.
            bootstrap: draws the videos of a batch, the same on every rank.
            device: of the batches.
            seed: of a bootstrap sample of all videos.
            ranks: that share the batches.

        Raises:
            ConfigError: the classes' counts are not in the vocabulary, or there is none.
        """
        self.config, self.device, self.ranks = config, device, ranks
        self.batch_size, self.part_size, self.bootstrap = batch_size, part_size, bootstrap
        class_weights_C: Tensor | None = None
        if config.kind == "weighted_hamming":
            if data.vocabulary is None:
                raise ConfigError("loss.kind: weighted_hamming takes its counts from data.vocabulary, which is not set")
            counts = vocabulary.video_counts(data.vocabulary, data.sizes.num_classes)
            class_weights_C = loss_weights.class_weights(counts, config.setting("class_weight_power")).to(device)
        self.loss = losses.build(config, class_weights_C)
        self.pos_weights_C: Tensor | None = None
        if config.pos_weight_power:
            counts_C, num_videos = data.statistics.label_counts_C, data.statistics.num_videos
            power, most = config.pos_weight_power, config.pos_weight_max
            self.pos_weights_C = loss_weights.positive_weights(counts_C, num_videos, power, most).to(device)
        self.fixed_weights_N: Tensor | None = None
        if config.bootstrap == "fixed":
            self.fixed_weights_N = data.bootstrap_weights(seed).to(device)
        self._drawn = torch.zeros(0, device=device)  # weights of the batch's parts that are still to come

    def __call__(self, logits_BC: Tensor, batch: Any) -> Tensor:
        """The mean over this rank's part of a batch."""
        return self.loss(
            logits_BC,
            batch.label_offsets,
            batch.label_indices,
            rated_offsets=batch.rated_offsets,
            rated_indices=batch.rated_indices,
            pos_weights_C=self.pos_weights_C,
            example_weights_B=self.example_weights(batch),
        )

    def example_weights(self, batch: Any) -> Tensor | None:
        """How often each video of the batch counts: bootstrap."""
        if self.fixed_weights_N is not None:
            return self.fixed_weights_N[batch.rows]
        if self.config.bootstrap == "per_batch":
            # All ranks draw the same for the whole batch, and each takes the places that data.batches gives it.
            if not len(self._drawn):
                self._drawn = loss_weights.per_batch_bootstrap_weights(self.batch_size, self.bootstrap, self.device)
            part, self._drawn = self._drawn[: self.part_size], self._drawn[self.part_size :]
            return part[self.ranks.rank :: self.ranks.size]
        return None
