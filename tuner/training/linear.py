"""The closed-form pipeline, for `model.kind: linear`: one pass over the training videos, one epoch, no optimizer.

The model is a ridge regression of the labels on the features, with one penalty, a setting of the model. Its scores are
scaled to logits with the leave-one-out scores of a sample of training videos, so the validation videos are not used.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from models import LinearConfig, Logistic
from models.frame.parts.frames import MeanPooled
from tuner.training.config import TrialConfig
from tuner.training.contrastive import ridge
from tuner.training.dataset import Dataset
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.state import Progress, device_metrics, validated
from tuner.training.supervised import begin


def train(
    trial: TrialConfig, data: Dataset, *, device: torch.device, seed: int, resume_from: Path | None = None
) -> Iterator[Progress]:
    """Fit the model, validate it and yield once; arguments and errors are those of `tuner.training.pipelines.train`."""
    assert isinstance(trial.model, LinearConfig)
    state = begin(trial, data, device=device, seed=seed)
    if resume_from is not None:
        state.load(resume_from, trial)
        yield Progress(epoch=1, metrics=state.history[-1], state=state, repeated=True)
        return
    start = time.monotonic()
    logistic, inputs = _parts(state.scored)
    fitted = ridge.fit(
        inputs,
        data,
        width=data.sizes.width,
        device=device,
        precision=trial.training.precision,
        penalties=(trial.model.penalty,),
        max_videos=None,
    )
    with torch.no_grad():
        logistic.head.weight.copy_(fitted.weight_CH)
        logistic.head.bias.copy_(fitted.bias_C)
    trained = time.monotonic()
    validation = data.validate_batches(batch_size_of(data.validate.schema), device)
    scores = evaluate(state.scored, validation, trial.training.precision)
    metrics = {
        "epoch": 1,
        **validated(scores, state.history),
        "videos_per_second": data.statistics.num_videos / (trained - start),
        "seconds": time.monotonic() - start,
        **device_metrics(device),
    }
    state.history.append(metrics)
    yield Progress(epoch=1, metrics=metrics, state=state)


def _parts(model: nn.Module) -> tuple[Logistic, nn.Module]:
    """Split a model into its logistic regression and the module that maps a batch's inputs to the layer's inputs."""
    if isinstance(model, MeanPooled):
        assert isinstance(model.model, Logistic)
        return model.model, MeanPooled(model.model.normalize)
    assert isinstance(model, Logistic)
    return model, model.normalize
