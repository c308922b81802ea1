"""Counts what makes the host wait for a GPU, by a trace of the operators of a run on the CPU.

On CUDA the host waits where it reads a value or a size that the device computes, and where it copies from memory that
is not pinned. A CPU runs the same operators, so a trace of a run there shows them without a GPU. What it cannot show: a
branch that only CUDA tensors take (`if x.is_cuda`), and an operator that waits inside one of its CUDA kernels alone,
except those named below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

# Operators that read a value (item), or whose result has a size that depends on values (nonzero, which a boolean index
# calls). The profiler also sees those that another operator calls, and those of backward.
OPERATORS = frozenset(
    "aten::" + name
    for name in (
        *("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"),
        *("nonzero", "nonzero_numpy", "masked_select", "bincount", "histc"),
        *("unique_dim", "_unique", "_unique2", "unique_consecutive"),
    )
)
# Fused kernels whose CPU version reads the step's number itself, which is on the host there; CUDA's leaves it on the
# device. What they call is not counted.
FUSED = "aten::_fused_"
# Calls that leave no operator on a CPU: from the device to the host, and from the host to the device. The last three
# copy from memory that is not pinned when a device is given; without one, the tensor stays on the host.
CALLS: Mapping[Any, str] = {
    Tensor.tolist: "tolist",
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
    Tensor.cpu: "cpu",
    Tensor.cuda: "cuda",
    torch.tensor: "torch.tensor",
    torch.as_tensor: "torch.as_tensor",
    torch.from_numpy: "torch.from_numpy",
}


def host_looks(action: Callable[[], Any]) -> dict[str, int]:
    """Runs `action` on the CPU and counts what would make the host wait for a GPU; {} where nothing would.

    Backward is part of the trace if `action` calls it. Whatever an optimizer or a lazy layer does in its first step
    only is left out by a step before this one.
    """
    calls = _Calls()
    # The trace is on this thread and on those of backward; a thread that loads data is not in it.
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as trace, calls:
        action()
    operators = Counter(event.name for event in trace.events() if event.name in OPERATORS and not _within_fused(event))
    return dict(operators + calls.counts)


def _within_fused(event: Any) -> bool:
    while event is not None and not event.name.startswith(FUSED):
        event = event.cpu_parent
    return event is not None


class _Calls(TorchFunctionMode):
    """Counts the calls in CALLS, and copies to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in CALLS:
            self.counts[CALLS[function]] += 1
        result = function(*args, **(kwargs or {}))
        if function is Tensor.to and result.device != args[0].device:
            self.counts["to another device"] += 1
        return result
