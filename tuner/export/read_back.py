"""Proof that a written model folder gives the model's own logits, on random inputs and on validation videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from data.batches import Batches
from data.cache.recipe import find_shards
from data.errors import DataError
from data.frames import decode_blocks
from data.schema import Schema
from data.tfrecord.shards import Reading
from tuner.errors import ModelFolderError

if TYPE_CHECKING:
    from tuner.training.data_config import DataConfig

# The largest difference of two forms of one model, relative to the largest logit: float32 sums in another order.
TOLERANCE = 1e-5
RANDOM_ROWS = (1, 33)  # batch sizes of the random inputs
REAL_ROWS = 64  # validation videos, if the shards are available
MAX_RANDOM_FRAMES = 7


def random_inputs(schema: Schema, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random inputs of a model: features [rows, D], or frames [rows, T, D] of different lengths and their mask."""
    if schema.level == "video":
        return (torch.randn(rows, schema.width, generator=generator),)
    num_frames = min(MAX_RANDOM_FRAMES, schema.max_frames)
    lengths = torch.randint(1, num_frames + 1, (rows, 1), generator=generator)
    lengths[0] = num_frames
    mask_BT = torch.arange(num_frames) < lengths
    frames_BTD = torch.randint(0, 256, (rows, num_frames, schema.width), dtype=torch.uint8, generator=generator)
    return frames_BTD * mask_BT[:, :, None], mask_BT


def compare(model: nn.Module, forms: Mapping[str, Callable[..., Tensor]], data: DataConfig) -> str:
    """Compare the logits of every form with those of `model`.

    Args:
        model: in eval mode, on the CPU.
        forms: what was read back from the folder, by file name.
        data: names the validation shards; they are left out where they are not available.

    Returns:
        The result as a sentence.

    Raises:
        ModelFolderError: a form differs by more than TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [random_inputs(data.schema, rows, generator) for rows in RANDOM_ROWS]
    real = _real_inputs(data)
    if real is not None:
        batches.append(real)
    largest = 0.0
    for inputs in batches:
        with torch.inference_mode():
            own_BC = model(*inputs)
            for name, form in forms.items():
                largest = max(largest, _difference(name, form(*inputs), own_BC))
    *first_names, last_name = forms
    names = f"{', '.join(first_names)} and {last_name}" if first_names else last_name
    kinds = f"{sum(RANDOM_ROWS)} random" + (f" and {len(real[0])} real" if real is not None else "")
    return f"read back: {names} give the trial's logits on {kinds} videos (largest relative difference {largest:.1g})"


def _difference(name: str, logits_BC: Tensor, own_BC: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit of the model itself.

    Raises:
        ModelFolderError: it is above TOLERANCE.
    """
    difference = float((logits_BC - own_BC).abs().max() / own_BC.abs().max())
    if not difference <= TOLERANCE:
        raise ModelFolderError(
            f"{name}: gives other logits than the trial's model: they differ by {difference:.2g} of the largest logit, "
            f"and rounding explains at most {TOLERANCE:g}; nothing was exported"
        )
    return difference


def _real_inputs(data: DataConfig) -> tuple[Tensor, ...] | None:
    """Inputs of the first validation videos; None if the shards are not available or hold no video."""
    try:
        reading = Reading(schema=data.schema, require_labels=False, max_bad_records=data.max_bad_records)
        shard = next(decode_blocks(find_shards(data.validate)[0], reading))
    except DataError:
        return None
    batch = next(Batches(shard, batch_size=REAL_ROWS, shuffle=False).epoch(0), None)
    return None if batch is None else batch.inputs
