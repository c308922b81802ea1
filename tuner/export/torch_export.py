"""model.pt2: the model as torch.export writes it, which runs with PyTorch alone and for any batch size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from data.schema import Schema
from tuner.export.formats import Contents, Format
from tuner.export.layout import PROGRAM
from tuner.export.read_back import random_inputs


def _write(folder: Path, contents: Contents) -> None:
    write_program(folder / PROGRAM, contents.model, contents.schema)


def _read_back(folder: Path) -> Callable[..., Tensor]:
    return read_program(folder / PROGRAM)


FORMAT = Format(name=PROGRAM, write=_write, read_back=_read_back)


def write_program(path: Path, model: nn.Module, schema: Schema) -> None:
    """Trace `model` with torch.export and write the program to `path`."""
    # Two rows: with a single row, torch.export would take the batch size for a constant.
    inputs = random_inputs(schema, 2, torch.Generator().manual_seed(0))
    batch, frames = torch.export.Dim("batch", min=1), torch.export.Dim("frames", min=1, max=schema.max_frames)
    dynamic = {0: batch} if schema.level == "video" else {0: batch, 1: frames}
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=(dynamic,) * len(inputs))
    torch.export.save(program, path)


def read_program(path: Path) -> Callable[..., Tensor]:
    """Load a program that `write_program` wrote."""
    with warnings.catch_warnings():
        # torch 2.11 builds tensors on the bytes that it has just read, and writes into none of them.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(path).module()
