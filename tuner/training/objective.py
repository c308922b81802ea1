"""What a supervised trial minimises over a batch, beside penalties: its loss by name, with all its weights.

Shapes   B videos in the batch   C classes   N rows of the training data   K classes that a teacher lists of a video
"""

from typing import Any

import torch
from torch import Tensor

from models.layers import rated_counts
from models.losses import losses
from models.losses import weights as loss_weights
from models.losses.losses import LossConfig
from tuner.errors import ConfigError
from tuner.training import teacher, vocabulary
from tuner.training.dataset import TrainingData
from tuner.training.ranks import Ranks


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
            ConfigError: the classes' counts are not in the vocabulary, or the teacher does not know the videos.
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
            counts_C, rated_C = data.statistics.label_counts_C, rated_counts(data.statistics)
            power, most = config.pos_weight_power, config.pos_weight_max
            self.pos_weights_C = loss_weights.positive_weights(counts_C, rated_C, power, most).to(device)
        self.fixed_weights_N: Tensor | None = None
        if config.bootstrap == "fixed":
            self.fixed_weights_N = data.bootstrap_weights(seed).to(device)
        self.lessons = Lessons(config.distill.predictions, data, device) if config.distill else None
        self._drawn = torch.zeros(0, device=device)  # weights of the batch's parts that are still to come

    def __call__(self, logits_BC: Tensor, batch: Any) -> Tensor:
        """The mean over this rank's part of a batch."""
        example_weights_B = self.example_weights(batch)
        loss = self.loss(
            logits_BC,
            batch.label_offsets,
            batch.label_indices,
            rated_offsets=batch.rated_offsets,
            rated_indices=batch.rated_indices,
            pos_weights_C=self.pos_weights_C,
            example_weights_B=example_weights_B,
        )
        if self.lessons is None or self.config.distill is None:
            return loss
        taught = losses.distillation(logits_BC, *self.lessons(batch.rows), example_weights_B)
        weight = self.config.distill.weight
        return weight * taught + (1 - weight) * loss

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


class Lessons:
    """A teacher's probabilities by the rows of the training data. All of them lie on the device."""

    def __init__(self, path: str, data: TrainingData, device: torch.device) -> None:
        """Finds every training video among the teacher's.

        Raises:
            ConfigError: the file cannot be read, is of other classes, or lacks a training video.
        """
        taught = teacher.read(path, data.sizes.num_classes)
        rows_N = taught.rows(data.ids)
        missing = int((rows_N < 0).sum())
        if missing:
            raise ConfigError(
                f"{path}: has no predictions of {missing:,} of the {len(rows_N):,} training videos; "
                "let the teacher predict all of data.train"
            )
        self.rows_N = torch.from_numpy(rows_N).to(device)
        self.classes = torch.tensor(taught.classes_NK, device=device)
        self.probabilities = torch.tensor(taught.probabilities_NK, device=device)

    def __call__(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Classes [B, K] and their probabilities of a batch's rows."""
        rows_B = self.rows_N[rows_B]
        return self.classes[rows_B].long(), self.probabilities[rows_B]
