"""The memory that a trial needs at the least, without taking any: to refuse what no attempt could train.

Counted are the weights, their gradients, the optimizer's state and an average of the weights, the queues of contrastive
training, and the features and logits of a batch. Activations and the allocator's own needs come on top, so a trial that
is not refused may still need more than there is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import models
from data import machine
from models import FeatureStatistics, LinearConfig, ModelConfig, Sizes
from models.layers.batch_norm import batch_norms
from models.optim.registry import OPTIMIZERS
from tuner.errors import TrialOutOfMemory
from tuner.training.config import ContrastiveConfig, Trial, TrialConfig

_FLOAT = 4  # bytes of a weight
_ENDLESS = 1 << 62  # bytes of what torch cannot even count


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A model as far as it is known without memory for it."""

    parameters: int
    batch_norm: bool  # whether it computes statistics over the videos of a batch


_outlines: dict[str, Outline] = {}  # most corners of a space have one of a few models
_MOST_OUTLINES = 1024


def outline(config: ModelConfig, sizes: Sizes) -> Outline:
    """Build the model of a configuration on the meta device, where tensors have no values.

    Raises:
        ValueError: the configuration does not fit the sizes.
    """
    key = repr((config, sizes))  # they hold mappings, which have no hash
    if key not in _outlines:
        if len(_outlines) >= _MOST_OUTLINES:  # a worker may meet thousands of models
            _outlines.clear()
        _outlines[key] = _outlined(config, sizes)
    return _outlines[key]


class _Shapes(TorchFunctionMode):
    """Gives the shapes of new weights alone: to draw them on the meta device, torch imports sympy, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.endswith("normal_"):
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty_like:
            return torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")
        return func(*args, **(kwargs or {}))


def _outlined(config: ModelConfig, sizes: Sizes) -> Outline:
    statistics = FeatureStatistics.empty(sizes)
    try:
        with torch.device("meta"), _Shapes():
            model = models.build(config, sizes, statistics, torch.Generator("cpu"))
    except RuntimeError:  # a size beyond 64 bits
        return Outline(parameters=_ENDLESS // _FLOAT, batch_norm=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Outline(parameters=parameters, batch_norm=bool(batch_norms(model)))


def least(trial: Trial, sizes: Sizes, *, num_videos: int | None = None, workers: int = 1) -> int:
    """The bytes that a worker of the trial needs at the least.

    Args:
        trial: its settings.
        sizes: of the data.
        num_videos: of the training split, which a batch cannot exceed; None: batches do not count.
        workers: that share each batch.
    """
    if isinstance(trial, ContrastiveConfig):
        return max(_pretraining(trial, sizes), least(trial.probe_trial, sizes, num_videos=num_videos))
    if isinstance(trial.model, LinearConfig):
        return sizes.width * (sizes.width + sizes.num_classes) * 8  # the normal equations, in float64
    weights = _FLOAT * outline(trial.model, sizes).parameters
    copies = 2 + _states(trial) + (trial.training.average is not None)  # with the gradients
    training = trial.training
    videos = min(training.batch_size // training.accumulate, num_videos or 0) // workers
    frames = training.frames.count if sizes.level == "frame" and training.frames.sampling == "random" else 1
    return copies * weights + _FLOAT * videos * (frames * sizes.width + 2 * sizes.num_classes)


def check(trial: Trial, sizes: Sizes, device: torch.device, *, num_videos: int | None = None, workers: int = 1) -> None:
    """Refuse a trial that needs more memory than the device, or this machine or its container, has.

    Raises:
        TrialOutOfMemory: says how much the trial needs and how much there is.
    """
    needed = least(trial, sizes, num_videos=num_videos, workers=workers)
    have, where = memory_of(device)
    if needed > have:
        raise TrialOutOfMemory(f"{described(trial, sizes, needed)}, but {where} has {gibibytes(have)}")


def memory_of(device: torch.device) -> tuple[int, str]:
    """The bytes of memory of a device, and what to call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, "the GPU"
    return machine.memory(), "this machine"


def described(trial: Trial, sizes: Sizes, needed: int) -> str:
    """What a trial needs, in words: its parameters, and the memory of its training."""
    if needed >= _ENDLESS:
        return "the model has more parameters than can be counted"
    parameters = sizes.width * sizes.num_classes
    if not isinstance(trial.model, LinearConfig):
        parameters = outline(trial.model, sizes).parameters
    return f"the model has {parameters:,} parameters, and its training needs at least {gibibytes(needed)} of memory"


def gibibytes(count: int) -> str:
    """A number of bytes for a person."""
    size, unit = next((2**n, unit) for n, unit in ((30, "GiB"), (20, "MiB"), (0, "bytes")) if count >= 2**n or not n)
    return f"{count / size:,.{1 if unit == 'GiB' else 0}f} {unit}"


def batches_of_one(trial: Trial, sizes: Sizes, num_videos: int | None = None) -> Iterator[tuple[str, str]]:
    """The settings by which a BatchNorm of the trial would see one video at a time, and why that cannot be.

    Args:
        trial: its settings.
        sizes: of the data.
        num_videos: to learn from; None: not known yet.
    """
    supervised = trial.probe_trial if isinstance(trial, ContrastiveConfig) else trial
    block = "probe" if isinstance(trial, ContrastiveConfig) else "training"
    training = supervised.training
    one_at_a_time = training.batch_size // training.accumulate == 1
    if not one_at_a_time and num_videos != 1:
        return
    if isinstance(supervised.model, LinearConfig) or not outline(supervised.model, sizes).batch_norm:
        return
    why = "BatchNorm needs at least 2 videos at a time, to compare them"
    if one_at_a_time:
        parts = f" in {training.accumulate} parts" if training.accumulate > 1 else ""
        yield f"{block}.batch_size", f"{why} (got {training.batch_size}{parts})"
    else:
        yield "data.train", f"{why}, but there is 1 video to learn from"


def _pretraining(trial: ContrastiveConfig, sizes: Sizes) -> int:
    """The bytes of the encoder, trained and by momentum, and of the queues."""
    encoder = _FLOAT * (outline(trial.model, sizes).parameters - trial.model.hidden * sizes.num_classes)
    method, contrasts = trial.pretrain.method, 1 + (len(sizes.features) if trial.pretrain.cross_modal else 0)
    queue = getattr(method, "queue", 0) * method.dimension * _FLOAT
    return 3 * max(0, encoder) + contrasts * queue


def _states(trial: TrialConfig) -> int:
    """The tensors of a weight's size that the optimizer keeps for each weight."""
    assert trial.optimizer is not None
    kind = OPTIMIZERS[trial.optimizer.kind]
    return kind.states + bool(trial.optimizer.settings.get("momentum"))
