"""The second phase of a contrastive trial: a probe on the pretrained encoder learns from labels.

    linear      a linear layer learns on the embeddings of the frozen encoder
    fine_tune   the encoder and the layer learn together

Both are supervised trials (tuner/training/supervised.py): of embeddings, or of the whole classifier.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.batches import Batches
from models import FusedMLP, Logistic
from tuner.errors import TunerError
from tuner.training.config import ContrastiveConfig
from tuner.training.contrastive.embeddings import embed
from tuner.training.dataset import Dataset, TrainingData
from tuner.training.evaluation import evaluate
from tuner.training.state import Progress
from tuner.training.supervised import begin, epochs


class Probe:
    """A probe in training."""

    def __init__(
        self,
        trial: ContrastiveConfig,
        classifier: FusedMLP,
        data: Dataset,
        *,
        seed: int,
        saved: dict[str, Any] | None = None,
    ) -> None:
        """Prepare the training.

        Args:
            trial: the whole trial.
            classifier: with the pretrained encoder; it gets the probe's weights whenever they are scored. Its device
                is that of the training.
            data: whose labelled training videos are learned from.
            seed: of the weights, the order and the dropout.
            saved: what `parts` gave, to resume there; None: begin with the first epoch.
        """
        self.trial, self.config, self.classifier, self.seed = trial, trial.probe_trial, classifier, seed
        self.device = classifier.head.weight.device
        self.frozen = trial.probe.kind == "linear"
        self.data: TrainingData = data
        if self.frozen:
            self.data = embed(classifier.encoder, data, device=self.device, precision=trial.training.precision)
        self.state = begin(self.config, self.data, device=self.device, seed=seed)
        if saved is not None:
            self.state.restore(saved["weights"], saved)
        else:
            self._set_first_weights(self.state.model)
        self.pretrained = copy.deepcopy(classifier.encoder.state_dict()) if self.frozen else {}

    def parts(self) -> dict[str, Any]:
        """The state of the training, as tensors and plain values."""
        return {"weights": self.state.scored.state_dict(), **self.state.parts()}

    def epochs(self, validation: Batches) -> Iterator[Progress]:
        """Train the epochs that are still due; yields after each, once the classifier is scored on `validation`.

        Raises:
            TrialDiverged: the loss is not finite.
            TunerError: the encoder of a linear probe has changed.
        """

        def score(model: nn.Module) -> dict[str, float]:
            """The metrics of the whole classifier on raw features, as an export is scored."""
            if isinstance(model, Logistic):
                set_head(self.classifier, *model.folded())
            else:
                self.classifier.load_state_dict(model.state_dict())
            return evaluate(self.classifier, validation, self.trial.training.precision)

        for progress in epochs(self.config, self.data, self.state, device=self.device, seed=self.seed, score=score):
            if self.frozen and progress.epoch == self.trial.probe.epochs:
                _check_frozen(self.pretrained, self.classifier.encoder.state_dict())
            yield progress

    def _set_first_weights(self, model: nn.Module) -> None:
        """Copy the pretrained encoder, and with `start: ridge` the layer that the closed-form probe fitted."""
        from_ridge = self.trial.probe.start == "ridge"  # pretraining ended with it as the classifier's head
        if isinstance(model, Logistic) and from_ridge:
            model.unfold(self.classifier.head.weight, self.classifier.head.bias)
        if isinstance(model, FusedMLP):
            model.encoder.load_state_dict(self.classifier.encoder.state_dict())
            if from_ridge:
                model.head.load_state_dict(self.classifier.head.state_dict())


def set_head(classifier: FusedMLP, weight_CH: Tensor, bias_C: Tensor) -> None:
    """Replace the classifier's last layer, embeddings [H] -> logits [C]."""
    classifier.head.load_state_dict({"weight": weight_CH, "bias": bias_C})


def _check_frozen(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Compare the encoder bit for bit with the one before the probe, as MoCo's linear evaluation does.

    Raises:
        TunerError: a tensor has changed.
    """
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if changed:
        raise TunerError(
            f"the encoder changed while its linear probe was trained ({', '.join(changed)}), so the trial is invalid; "
            "this is a bug of the program"
        )
