"""Brings batches to a device while the device works on the ones before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

AHEAD = (
    2  # batches that are gathered and copied before they are asked for; with the one in use, three are on the device
)

Tensors = tuple[Tensor, ...]


def prefetched(gather: Callable[[int], Tensors], starts: range, device: torch.device) -> Generator[Tensors]:
    """Yields gather(start) for each start, on the device; a thread gathers up to AHEAD batches ahead of the consumer.

    The copies to a GPU are on a stream of their own, so they run while the GPU computes. The stream that is current
    where a batch is asked for waits for the batch's copies; the host does not.

    Args:
        gather: makes the tensors of a batch, for a GPU in pinned memory; the thread calls it in the order of `starts`.
        starts: what `gather` is called with.
        device: of the tensors that are yielded.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def bring(start: int) -> tuple[Tensors, torch.cuda.Event | None]:
        tensors = gather(start)
        if stream is None:
            return tuple(tensor.to(device) for tensor in tensors), None
        with torch.cuda.stream(stream):
            # torch reuses the memory of a pinned tensor only after the copies from it have ended.
            return tuple(tensor.to(device, non_blocking=True) for tensor in tensors), stream.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        remaining = iter(starts)
        coming: deque[Future[tuple[Tensors, torch.cuda.Event | None]]] = deque()
        coming.extend(thread.submit(bring, start) for start in islice(remaining, AHEAD))
        while coming:
            first = coming.popleft()
            coming.extend(thread.submit(bring, start) for start in islice(remaining, 1))
            tensors, copied = first.result()
            if copied is not None:
                consumer = torch.cuda.current_stream(device)
                consumer.wait_event(copied)
                for tensor in tensors:
                    tensor.record_stream(consumer)  # its memory belongs to the stream of the copies
            yield tensors
