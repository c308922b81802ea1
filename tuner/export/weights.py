"""model.safetensors: the tensors of a model, with the weight matrices in float32 or rounded to float16."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from tuner.export.formats import Contents, Format
from tuner.export.layout import WEIGHTS
from tuner.export.loader import load_model


def _write(folder: Path, contents: Contents) -> None:
    save_file(_stored(contents.model, contents.float16), folder / WEIGHTS)


def _read_back(folder: Path) -> nn.Module:
    return load_model(folder).model


FORMAT = Format(name=WEIGHTS, write=_write, read_back=_read_back)


def _stored(model: nn.Module, float16: bool) -> dict[str, Tensor]:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {name: tensor.half() if float16 and _is_matrix(tensor) else tensor for name, tensor in tensors.items()}


def _is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is a weight matrix: large, with values near 1. Variances and counts need float32's range."""
    return tensor.is_floating_point() and tensor.ndim >= 2


def round_to_float16(model: nn.Module) -> None:
    """Round the weight matrices in place to values that float16 holds, as if the model were stored and read back."""
    for tensor in model.state_dict().values():  # state_dict shares the model's memory
        if _is_matrix(tensor):
            tensor.copy_(tensor.half())


def stored_bytes(model: nn.Module, *, float16: bool) -> int:
    """An upper estimate of the size of model.safetensors in bytes: the tensors, and 128 bytes of header for each."""
    sizes = {
        name: tensor.numel() * (2 if float16 and _is_matrix(tensor) else tensor.element_size())
        for name, tensor in model.state_dict().items()
    }
    return sum(sizes.values()) + sum(len(name) + 128 for name in sizes)
