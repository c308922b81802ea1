"""A contrastive trial, both halves, as a generator of Progress: plain PyTorch, no Ray.

    pretraining     an encoder learns without labels; after every epoch a closed-form probe tells its GAP
    probe           a linear layer on the frozen encoder learns from labels, or the whole model does (fine_tune)

Epochs count through both halves. The model of an epoch is always the whole classifier, encoder and linear layer in one
fused MLP: after pretraining's epochs the layer is the closed-form probe's. So every epoch can be exported and scored,
and `gap_best` compares like with like.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from data.batches import Batches
from models import FusedMLP, Logistic
from tuner.errors import TunerError
from tuner.training import checkpoint
from tuner.training.config import ContrastiveConfig
from tuner.training.contrastive import encoder_store as encoders
from tuner.training.contrastive import pretrain
from tuner.training.contrastive import ridge as closed_form
from tuner.training.contrastive.embeddings import Embeddings, embed
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.contrastive.pretrain import Pretraining
from tuner.training.dataset import Dataset
from tuner.training.evaluation import BATCH_SIZE, evaluate
from tuner.training.state import Progress, TrainingState, device_metrics, validated
from tuner.training.supervised import begin, epochs


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
    run = _Run(trial, data, device, seed, encoder_store)
    if resume_from is not None:
        run.resume(resume_from)
        yield run.progress(repeated=True)
    elif run.take_from_store():
        yield run.progress()
    for _ in run.pretrain():
        yield run.progress()
    for _ in run.probe():
        yield run.progress()


class _Run:
    """One trial under way, as it is saved: its classifier, what it is measured on, and what was measured."""

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
        self.half: Pretraining | TrainingState | None = None  # under way; None: the probe, which has not begun
        self.saved_probe: dict[str, Any] | None = None  # where a resumed trial's probe was left
        self.tags: dict[str, str] = {}
        # A generator of its own: the halves seed torch's when they begin.
        classifier = models.build(trial.model, data.sizes, data.statistics, torch.Generator().manual_seed(seed))
        assert isinstance(classifier, FusedMLP)
        self.classifier = classifier.to(device).eval()
        self.validation: Batches = data.validate_batches(BATCH_SIZE, device)

    @property
    def epoch(self) -> int:
        """The last finished one, through both halves."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @cached_property
    def shaped_by(self) -> dict[str, Any]:
        """What shapes the trial's encoder."""
        return encoders.shaped_by(self.trial, self.data, self.seed)

    def progress(self, repeated: bool = False) -> Progress:
        """What the last epoch came to."""
        return Progress(epoch=self.epoch, metrics=self.history[-1], state=self, repeated=repeated, tags=dict(self.tags))

    def save(self, directory: Path, trial: ContrastiveConfig) -> None:
        """Write the trial into `directory`, whole or not at all."""
        training: dict[str, Any] = {"history": self.history, "pretraining": None, "probe": None}
        if isinstance(self.half, Pretraining):
            training["pretraining"] = self.half.parts()
        elif self.half is not None:
            training["probe"] = {"weights": self.half.scored.state_dict(), **self.half.parts()}
        checkpoint.save(directory, model=self.classifier.state_dict(), training=training, settings=trial.settings)

    def resume(self, directory: Path) -> None:
        """Go back to where a checkpoint was written."""
        weights, saved = checkpoint.load(directory, settings=self.trial.settings)
        self.classifier.load_state_dict(weights)
        self.history, self.saved_probe = saved["history"], saved["probe"]
        if saved["pretraining"] is not None:
            self.half = pretrain.begin(self.trial, self.data, device=self.device, seed=self.seed)
            self.half.restore(saved["pretraining"])

    def take_from_store(self) -> bool:
        """Whether another trial has made this trial's encoder; then it is taken, and what it is worth is noted."""
        if self.encoder_store is None:
            return False
        found = self.encoder_store.find(self.shaped_by)
        made_by = found[1] if found else self.encoder_store.trial_id
        self.tags = {"encoder": encoders.key(self.shaped_by), "encoder_made_by": made_by}
        if found is not None:
            self._judge(found[0], self.trial.pretrain.epochs, {}, time.monotonic())
        return found is not None

    def pretrain(self) -> Iterator[None]:
        """The epochs of the first half that are still due."""
        if self.epoch < self.trial.pretrain.epochs:
            state = self.half or pretrain.begin(self.trial, self.data, device=self.device, seed=self.seed)
            assert isinstance(state, Pretraining)
            self.half = state
            start = time.monotonic()
            for metrics in pretrain.epochs(self.trial, self.data, state, device=self.device, seed=self.seed):
                self._judge(state.encoder.state_dict(), state.epoch, metrics, start)
                yield
                start = time.monotonic()
        if isinstance(self.half, Pretraining) and self.encoder_store is not None:
            self.encoder_store.keep(self.half.encoder, self.shaped_by)

    def _judge(self, encoder: dict[str, Tensor], epoch: int, metrics: dict[str, float], start: float) -> None:
        """Put the closed-form probe on an encoder and note what both are worth after an epoch of pretraining."""
        self.classifier.encoder.load_state_dict(encoder)
        probe = closed_form.fit(
            self.classifier.encoder,
            self.data,
            width=self.classifier.encoder.width,
            device=self.device,
            precision=self.precision,
        )
        self._set_head(probe.weight_CH, probe.bias_C)
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

    def probe(self) -> Iterator[None]:
        """The epochs of the second half that are still due."""
        trial, second = self.trial, self.trial.second_half
        frozen = trial.probe.kind == "linear"
        data = self._embeddings() if frozen else self.data
        state = begin(second, data, device=self.device, seed=self.seed)
        if self.saved_probe is not None:
            state.restore(self.saved_probe["weights"], self.saved_probe)
        else:
            self._start(state.model)
        self.half = state
        before = copy.deepcopy(self.classifier.encoder.state_dict()) if frozen else {}

        def score(model: torch.nn.Module) -> dict[str, float]:
            """Of the whole classifier on raw features, as an export is scored."""
            if isinstance(model, Logistic):
                self._set_head(*model.folded())
            else:
                self.classifier.load_state_dict(model.state_dict())
            return evaluate(self.classifier, self.validation, self.precision)

        for progress in epochs(second, data, state, device=self.device, seed=self.seed, score=score):
            epoch = trial.pretrain.epochs + progress.epoch
            best = max([progress.metrics["gap"], *(past["gap"] for past in self.history)])
            self.history.append({**progress.metrics, "epoch": epoch, "gap_best": best})
            if frozen and progress.epoch == trial.probe.epochs:
                _check_frozen(before, self.classifier.encoder.state_dict())
            yield

    def _start(self, model: torch.nn.Module) -> None:
        """The probe's first weights: the pretrained encoder's, and those of the closed-form probe where asked for."""
        from_ridge = self.trial.probe.start == "ridge"  # pretraining ended with it as the classifier's head
        if isinstance(model, Logistic) and from_ridge:
            model.unfold(self.classifier.head.weight, self.classifier.head.bias)
        if isinstance(model, FusedMLP):
            model.encoder.load_state_dict(self.classifier.encoder.state_dict())
            if from_ridge:
                model.head.load_state_dict(self.classifier.head.state_dict())

    def _embeddings(self) -> Embeddings:
        return embed(self.classifier.encoder, self.data, device=self.device, precision=self.precision)

    def _set_head(self, weight_CH: Tensor, bias_C: Tensor) -> None:
        self.classifier.head.load_state_dict({"weight": weight_CH, "bias": bias_C})


def _check_frozen(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """The probe must have left the encoder as it was, bit for bit (as MoCo's own linear evaluation checks)."""
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if changed:
        raise TunerError(f"the encoder changed while its probe was trained ({', '.join(changed)}): it does not count")
