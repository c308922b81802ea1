"""Mixed precision: which one `auto` means on a device, and what applies it: in training, and to look at a result."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from data.batches import Batch

Precision = Literal["auto", "fp32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Matrix products in bf16 where `precision` asks for it, everything else as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))


def forward(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """What `model` gives for a batch, without gradients: float32 or, under autocast, bfloat16."""
    with torch.inference_mode(), autocast(batch.rows.device, precision):
        output: Tensor = model(*batch.inputs)
    return output


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether `precision` means bf16 on this device: `auto` asks the hardware, a plain name is obeyed."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Emulated bf16 is slower than fp32: only processors with the instructions count.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
