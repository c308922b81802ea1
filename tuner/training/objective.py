"""The objective of a supervised trial, without penalties: the loss that its settings name, with all weights.

Shapes   B videos in the batch   C classes   N rows of the training data   K classes that a teacher lists for a video
"""

from typing import Any

import torch
from torch import Tensor

from models import losses
from models.inputs import rated_counts
from models.losses import LossConfig
from models.losses import weights as loss_weights
from tuner.errors import ConfigError
from tuner.training import teacher, vocabulary
from tuner.training.dataset import TrainingData
from tuner.training.ranks import Ranks


class Objective:
    """The data term of a trial's loss, with everything that is the same for all batches prepared once."""

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
        """Prepare the weights of classes and videos.

        Args:
            config: the settings of the loss.
            data: the training data, for its label counts.
            batch_size: videos in a step, over all ranks together.
            part_size: videos in a part of it, where gradients are accumulated.
            bootstrap: draws the weights of a batch's videos, the same on every rank.
            device: of the batches.
            seed: of the bootstrap sample of all videos.
            ranks: the workers that share the batches.

        Raises:
            ConfigError: the vocabulary has no counts of the classes, or the teacher predictions lack a training video.
        """
        self.config, self.device, self.ranks = config, device, ranks
        self.batch_size, self.part_size, self.bootstrap = batch_size, part_size, bootstrap
        class_weights_C: Tensor | None = None
        if config.kind == "weighted_hamming":
            if data.vocabulary is None:
                raise ConfigError("loss.kind: weighted_hamming needs the counts of data.vocabulary, which is not set")
            counts = vocabulary.video_counts(data.vocabulary, data.sizes.num_classes)
            class_weights_C = loss_weights.class_weights(counts, config.settings["class_weight_power"]).to(device)
        self.loss = losses.build(config, class_weights_C)
        self.pos_weights_C: Tensor | None = None
        if config.pos_weight_power:
            counts_C, rated_C = data.statistics.label_counts_C, rated_counts(data.statistics)
            power, limit = config.pos_weight_power, config.pos_weight_max
            self.pos_weights_C = loss_weights.positive_weights(counts_C, rated_C, power, limit).to(device)
        self.fixed_weights_N: Tensor | None = None
        if config.bootstrap == "fixed":
            self.fixed_weights_N = data.bootstrap_weights(seed).to(device)
        self.teacher = TeacherPredictions(config.distill.predictions, data, device) if config.distill else None
        self._drawn = torch.zeros(0, device=device)  # weights of the batch's parts that follow

    def __call__(self, logits_BC: Tensor, batch: Any) -> Tensor:
        """The mean loss over this rank's part of a batch."""
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
        if self.teacher is None or self.config.distill is None:
            return loss
        distilled = losses.distillation(logits_BC, *self.teacher(batch.rows), example_weights_B)
        weight = self.config.distill.weight
        return weight * distilled + (1 - weight) * loss

    def example_weights(self, batch: Any) -> Tensor | None:
        """How often the bootstrap counts each video of the batch, [B] float32; None: each once."""
        if self.fixed_weights_N is not None:
            return self.fixed_weights_N[batch.rows]
        if self.config.bootstrap == "per_batch":
            # All ranks draw the same weights for the whole batch; each takes those of the videos that it gets.
            if not len(self._drawn):
                self._drawn = loss_weights.per_batch_bootstrap_weights(self.batch_size, self.bootstrap, self.device)
            part, self._drawn = self._drawn[: self.part_size], self._drawn[self.part_size :]
            return part[self.ranks.rank :: self.ranks.size]
        return None


class TeacherPredictions:
    """A teacher's probabilities, looked up by rows of the training data. All of them are on the device."""

    def __init__(self, path: str, data: TrainingData, device: torch.device) -> None:
        """Read the file and find every training video in it.

        Raises:
            ConfigError: the file cannot be read, has other classes, or lacks a training video.
        """
        predictions = teacher.read(path, data.sizes.num_classes)
        rows_N = predictions.rows(data.ids)
        teacher.check_videos(path, rows_N)
        self.rows_N = torch.from_numpy(rows_N).to(device)
        self.classes = torch.tensor(predictions.classes_NK, device=device)
        self.probabilities = torch.tensor(predictions.probabilities_NK, device=device)

    def __call__(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """The classes [B, K] and their probabilities [B, K] of a batch's rows [B]."""
        rows_B = self.rows_N[rows_B]
        return self.classes[rows_B].long(), self.probabilities[rows_B]
