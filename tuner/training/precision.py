"""Mixed precision: what `auto` means on a device, and how training and evaluation apply it."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from data.batches import Batch

Precision = Literal["auto", "fp32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """A context in which matrix products run in bf16 where `precision` says so; everything else is unchanged."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))


def forward(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """Apply `model` to a batch without gradients; the output is float32, or bfloat16 under autocast."""
    with torch.inference_mode(), autocast(batch.rows.device, precision):
        output: Tensor = model(*batch.inputs)
    return output


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether `precision` means bf16 on this device; `auto` does where the hardware has it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Emulated bf16 is slower than fp32: only processors with the instructions count.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
