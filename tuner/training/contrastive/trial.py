"""A contrastive trial, both phases, as a generator of Progress: plain PyTorch, no Ray.

    pretraining   an encoder learns without labels; after every epoch a closed-form probe measures its GAP
    probe         a linear layer on the frozen encoder learns from labels, or the whole model does (fine_tune)

One count of epochs covers both phases. The model of an epoch is always the whole classifier, encoder and linear layer
in one fused MLP; in pretraining, its layer is the closed-form probe's. So every epoch can be exported and scored, and
`gap_best` compares the same thing in both phases.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from data.batches import Batches
from models import FusedMLP
from tuner.training import checkpoint
from tuner.training.config import ContrastiveConfig
from tuner.training.contrastive import encoder_store as encoders
from tuner.training.contrastive import pretrain, ridge
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.contrastive.pretrain import Pretraining
from tuner.training.contrastive.probe import Probe, set_head
from tuner.training.dataset import Dataset
from tuner.training.evaluation import BATCH_SIZE, evaluate
from tuner.training.state import Progress, device_metrics, validated


def train(
    trial: ContrastiveConfig,
    data: Dataset,
    *,
    device: torch.device,
    seed: int,
    resume_from: Path | None = None,
    encoder_store: EncoderStore | None = None,
) -> Iterator[Progress]:
    """Pretrain, then train the probe; yields after each epoch of both phases.

    A trial that finds its encoder in the encoder store begins with the last epoch of pretraining. Arguments and errors
    are those of `tuner.training.pipelines.train`.
    """
    training = ContrastiveTraining(trial, data, device, seed, encoder_store)
    if resume_from is not None:
        training.resume(resume_from)
        yield training.progress(repeated=True)
    elif training.take_from_store():
        yield training.progress()
    for _ in training.pretrain():
        yield training.progress()
    for _ in training.train_probe():
        yield training.progress()


class ContrastiveTraining:
    """A trial in training, as a checkpoint stores it: its classifier, its phase and its metrics."""

    def __init__(
        self,
        trial: ContrastiveConfig,
        data: Dataset,
        device: torch.device,
        seed: int,
        encoder_store: EncoderStore | None,
    ) -> None:
        self.trial, self.data, self.device, self.seed, self.encoder_store = trial, data, device, seed, encoder_store
        self.precision = trial.training.precision
        self.history: list[dict[str, float]] = []
        self.phase: Pretraining | Probe | None = None  # the phase in training; None: neither has begun here
        self.saved_probe: dict[str, Any] | None = None  # the state of the probe in the checkpoint that was resumed
        self.tags: dict[str, str] = {}
        # Its own generator: each phase seeds torch's when it begins.
        classifier = models.build(trial.model, data.sizes, data.statistics, torch.Generator().manual_seed(seed))
        assert isinstance(classifier, FusedMLP)
        self.classifier = classifier.to(device).eval()
        self.validation: Batches = data.validate_batches(BATCH_SIZE, device)

    @property
    def epoch(self) -> int:
        """The number of finished epochs, over both phases."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @cached_property
    def shaped_by(self) -> dict[str, Any]:
        """Everything that the trial's encoder depends on."""
        return encoders.shaped_by(self.trial, self.data, self.seed)

    def progress(self, repeated: bool = False) -> Progress:
        """The Progress of the last finished epoch."""
        return Progress(epoch=self.epoch, metrics=self.history[-1], state=self, repeated=repeated, tags=dict(self.tags))

    def save(self, directory: Path, trial: ContrastiveConfig) -> None:
        """Write the trial into `directory`, whole or not at all."""
        training: dict[str, Any] = {"history": self.history, "pretraining": None, "probe": None}
        if isinstance(self.phase, Pretraining):
            training["pretraining"] = self.phase.parts()
        elif self.phase is not None:
            training["probe"] = self.phase.parts()
        checkpoint.save(directory, model=self.classifier.state_dict(), training=training, settings=trial.settings)

    def resume(self, directory: Path) -> None:
        """Restore the state that a checkpoint stores."""
        weights, saved = checkpoint.load(directory, settings=self.trial.settings)
        self.classifier.load_state_dict(weights)
        self.history, self.saved_probe = saved["history"], saved["probe"]
        if saved["pretraining"] is not None:
            self.phase = pretrain.begin(self.trial, self.data, device=self.device, seed=self.seed)
            self.phase.restore(saved["pretraining"])

    def take_from_store(self) -> bool:
        """Take this trial's encoder from the encoder store, where another trial left it, and measure its metrics.

        Returns:
            Whether the store has it.
        """
        if self.encoder_store is None:
            return False
        found = self.encoder_store.find(self.shaped_by)
        made_by = found[1] if found else self.encoder_store.trial_id
        self.tags = {"encoder": encoders.key(self.shaped_by), "encoder_made_by": made_by}
        if found is not None:
            self._measure(found[0], self.trial.pretrain.epochs, {}, time.monotonic())
        return found is not None

    def pretrain(self) -> Iterator[None]:
        """Run the epochs of pretraining that are still due; yields after each."""
        if self.epoch < self.trial.pretrain.epochs:
            state = self.phase or pretrain.begin(self.trial, self.data, device=self.device, seed=self.seed)
            assert isinstance(state, Pretraining)
            self.phase = state
            start = time.monotonic()
            for metrics in pretrain.epochs(self.trial, self.data, state, device=self.device, seed=self.seed):
                self._measure(state.encoder.state_dict(), state.epoch, metrics, start)
                yield
                start = time.monotonic()
        if isinstance(self.phase, Pretraining) and self.encoder_store is not None:
            self.encoder_store.store(self.phase.encoder, self.shaped_by)

    def _measure(self, encoder: dict[str, Tensor], epoch: int, metrics: dict[str, float], start: float) -> None:
        """Fit the closed-form probe to an encoder and append the metrics of both to the history."""
        self.classifier.encoder.load_state_dict(encoder)
        probe = ridge.fit(
            self.classifier.encoder,
            self.data,
            width=self.classifier.encoder.width,
            device=self.device,
            precision=self.precision,
        )
        set_head(self.classifier, probe.weight_CH, probe.bias_C)
        self.history.append(
            {
                "epoch": epoch,
                **validated(evaluate(self.classifier, self.validation, self.precision), self.history),
                **metrics,
                "ridge_penalty": probe.penalty,
                "seconds": time.monotonic() - start,
                **device_metrics(self.device),
            }
        )

    def train_probe(self) -> Iterator[None]:
        """Run the epochs of the probe that are still due; yields after each."""
        probe = Probe(self.trial, self.classifier, self.data, seed=self.seed, saved=self.saved_probe)
        self.phase = probe
        for progress in probe.epochs(self.validation):
            epoch = self.trial.pretrain.epochs + progress.epoch
            best = max([progress.metrics["gap"], *(past["gap"] for past in self.history)])
            self.history.append({**progress.metrics, "epoch": epoch, "gap_best": best})
            yield
