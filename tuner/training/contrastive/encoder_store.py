"""The encoder store keeps pretrained encoders, so that trials which differ only in their probe pretrain once.

    <storage>/.encoders/<key>/     a checkpoint (tuner/training/checkpoint.py) of the encoder's weights

The key is a hash of everything that the weights depend on: the settings, the content of the training videos and the
source of the modules in SHAPING. A commit that changes none of these modules leaves the stored encoders valid. Nothing
is evicted. The folder can be deleted at any time; trials then pretrain again.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import data.batches
import data.cache.stream
import data.labels
import data.prefetch
import models.config
import models.contrastive
import models.inputs
import models.layers
import models.losses.sparse_cross_entropy
import models.optim
import models.tensors
import models.video.fused_mlp
import tuner.training.contrastive.pretrain
import tuner.training.precision
import tuner.training.steps
from data.retry import retried
from models import FusedEncoder
from tuner.errors import CheckpointError, WrittenTwice
from tuner.storage.place import Place
from tuner.storage.stores import at
from tuner.training import checkpoint
from tuner.training.config import ContrastiveConfig
from tuner.training.dataset import Dataset

FOLDER = ".encoders"  # in the storage; an experiment cannot have this name
# The modules and packages on whose code the weights of an encoder depend.
SHAPING = (
    data.batches,
    data.cache.stream,
    data.labels,
    data.prefetch,
    models.config,
    models.contrastive,
    models.inputs,
    models.layers,
    models.losses.sparse_cross_entropy,
    models.optim,
    models.tensors,
    models.video.fused_mlp,
    tuner.training.contrastive.pretrain,
    tuner.training.precision,
    tuner.training.steps,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderStore:
    """The encoder store of a storage, as one trial uses it."""

    directory: Place
    trial_id: str  # of the trial that uses it; noted in the encoders that the trial stores
    takes_own: bool = True  # False: the trial is trained again and pretrains as it did, if it has made the encoder

    def find(self, shaped_by: dict[str, Any]) -> tuple[dict[str, Tensor], str] | None:
        """Load the encoder that `shaped_by` describes.

        Returns:
            Its weights and the id of the trial that made it; None where the store has no valid one for this trial.
        """
        found = self._load(shaped_by)
        return None if found is not None and found[1] == self.trial_id and not self.takes_own else found

    def _load(self, shaped_by: dict[str, Any]) -> tuple[dict[str, Tensor], str] | None:
        place = self.directory / key(shaped_by)
        if not place.exists():
            return None
        try:
            with at(place).download(checkpoint.FILES) as local:
                weights, notes = checkpoint.load(local, settings=shaped_by)
        except CheckpointError:
            logging.getLogger(__name__).exception("a stored encoder cannot be read, so the trial pretrains again")
            return None
        return weights, notes["made_by"]

    def store(self, encoder: FusedEncoder, shaped_by: dict[str, Any]) -> None:
        """Store an encoder for other trials, unless the store has a valid one that `shaped_by` describes."""
        if self._load(shaped_by) is None:
            notes = {"made_by": self.trial_id}
            place = self.directory / key(shaped_by)
            save = partial(checkpoint.save, place, model=encoder.state_dict(), training=notes, settings=shaped_by)
            try:
                retried(save, place)
            except WrittenTwice:  # another trial has stored the same weights; where files are mixed, the next one does
                logging.getLogger(__name__).warning("%s: stored by two trials at once", place)


def shaped_by(trial: ContrastiveConfig, data: Dataset, seed: int) -> dict[str, Any]:
    """Everything that the encoder of a trial depends on, as plain values."""
    model = asdict(trial.model)
    del model["prior_bias"]  # a setting of the output layer
    return {
        "model": model,
        "pretrain": asdict(trial.pretrain),
        "precision": trial.training.precision,
        "seed": seed,
        "features": dict(data.sizes.features),
        "data_fingerprint": data.train.fingerprint,
        **({} if data.train.stream is None else {"buffer": data.train.stream.buffer}),  # which shuffles otherwise
        "source": _source(),
    }


def key(shaped_by: dict[str, Any]) -> str:
    """The name of an encoder's folder: a hash of what `shaped_by` gives."""
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:24]


def _source() -> str:
    digest = hashlib.sha256()
    for module in SHAPING:
        assert module.__file__ is not None
        file = Path(module.__file__)
        files = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
        for path in files:
            digest.update(f"{module.__name__} {path.name} ".encode() + path.read_bytes())
    return digest.hexdigest()
