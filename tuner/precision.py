"""Mixed precision: which one `auto` means on a device, and the context that applies it."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Matrix products in bf16 where `precision` asks for it, everything else as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether `precision` means bf16 on this device: `auto` asks the hardware, a plain name is obeyed."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Emulated bf16 is slower than fp32: only processors with the instructions count.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
