"""encoder.pt2, encoder.safetensors and probe.safetensors: the two parts of a contrastive trial's model, separately.

The encoder gives embeddings [B, H]; the probe is the linear layer that gives logits [B, C] of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from models import FusedMLP
from tuner.export.formats import Contents, Format
from tuner.export.layout import ENCODER, ENCODER_PROGRAM, PROBE
from tuner.export.torch_export import read_program, write_program


def _applies(contents: Contents) -> bool:
    return contents.config["pipeline"] == "contrastive" and isinstance(contents.model, FusedMLP)


def _write(folder: Path, contents: Contents) -> None:
    model = contents.model
    assert isinstance(model, FusedMLP)
    for name, part in ((ENCODER, model.encoder), (PROBE, model.head)):
        save_file({key: tensor.contiguous() for key, tensor in part.state_dict().items()}, folder / name)
    write_program(folder / ENCODER_PROGRAM, model.encoder, contents.schema)


def _read_back(folder: Path) -> Callable[[Tensor], Tensor]:
    encoder, probe = read_program(folder / ENCODER_PROGRAM), load_file(folder / PROBE)

    def logits(features_BD: Tensor) -> Tensor:
        return encoder(features_BD) @ probe["weight"].T + probe["bias"]

    return logits


FORMAT = Format(name=f"{ENCODER_PROGRAM} with {PROBE}", write=_write, read_back=_read_back, applies=_applies)
