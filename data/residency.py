"""Copies of features on GPUs, kept as long as their owner: all batches and all trials of a process share them.

    residency = Residency("auto")
    residency.copy_of(fingerprint, features_ND, device)     # a tensor on the device, or None
    residency.trained(device)                               # after an epoch: it has shown how much memory it needs
    residency.drop(device)                                  # training ran out of memory: its features make room

Features that are not resident are copied batch by batch (data/batches.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Wanted = Literal["auto"] | bool


class Memory(NamedTuple):
    """The memory of a GPU, in bytes."""

    free: int  # that this process may still reserve
    reserved: int  # that torch's allocator holds, in use or not: since it was last emptied, the most that was in use


class Residency:
    """The copies that one owner keeps, and the decision which features get one.

    With `auto`, features get a copy if they fit beside what training needs. It needs what torch's allocator has
    reserved at the end of an epoch without them, so nothing gets a copy before `trained` was called.
    """

    def __init__(
        self,
        wanted: Wanted = "auto",
        *,
        beside: Residency | None = None,
        memory: Callable[[torch.device], Memory] | None = None,
    ) -> None:
        """Start without copies.

        Args:
            wanted: True: every GPU gets a copy at once; False: none does.
            beside: the copies of another owner, which are dropped together with these.
            memory: the memory of a device; None: as torch and the driver report it.
        """
        self.wanted = wanted
        self._beside, self._memory = beside, memory or _memory_of
        self._copies: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._needed: dict[torch.device, int] = {}  # bytes that training needs beside the copies
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Residency], tuple[Wanted]]:
        return Residency, (self.wanted,)  # another process makes copies of its own

    def copy_of(self, fingerprint: str, features_ND: Tensor, device: torch.device) -> Tensor | None:
        """The copy of these features on a GPU, made now if there is none; None where they are not resident.

        Args:
            fingerprint: the name of the content; features of the same name and type share one copy.
            features_ND: on the host.
            device: the GPU.
        """
        device = with_index(device)
        if self.wanted is False or device == features_ND.device:
            return None
        key = (fingerprint, features_ND.dtype, device)
        with self._lock:
            if key not in self._copies:
                if self.wanted == "auto" and not self._fits(features_ND.nbytes, device):
                    return None
                try:
                    with torch.inference_mode(False):  # training may use the copy that validation made
                        self._copies[key] = features_ND.to(device)
                except torch.OutOfMemoryError:  # another process was faster, or the free memory is in pieces
                    return None
            return self._copies[key]

    def trained(self, device: torch.device) -> None:
        """Remember how much memory training needs on a GPU: called after an epoch with its validation."""
        device = with_index(device)
        if device.type != "cpu":
            self._needed[device] = self._memory(device).reserved - self._resident_bytes(device)

    def possible(self, device: torch.device) -> bool:
        """Whether features may become resident on the device."""
        return self.wanted is not False and device.type != "cpu"

    def holds(self, device: torch.device) -> bool:
        """Whether there are copies on the device that could be dropped."""
        device = with_index(device)
        return self._resident_bytes(device) > 0 or (self._beside is not None and self._beside.holds(device))

    def drop(self, device: torch.device) -> None:
        """Free the copies on a GPU. With `auto`, features get a copy again only after `trained` was called again."""
        device = with_index(device)
        with self._lock:
            self._needed.pop(device, None)
            self._copies = {key: copy for key, copy in self._copies.items() if key[2] != device}
            if self.wanted is True:
                self.wanted = "auto"  # a copy at once has just proved too much
        if self._beside is not None:
            self._beside.drop(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _fits(self, num_bytes: int, device: torch.device) -> bool:
        if device not in self._needed:
            return False
        memory = self._memory(device)
        return num_bytes + self._needed[device] + self._resident_bytes(device) <= memory.free + memory.reserved

    def _resident_bytes(self, device: torch.device) -> int:
        return sum(copy.nbytes for (_, _, where), copy in self._copies.items() if where == device)


def with_index(device: torch.device | str) -> torch.device:
    """The device with its index, since "cuda" and "cuda:0" are one device."""
    return torch.empty(0, device=device).device


def _memory_of(device: torch.device) -> Memory:
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    own = int(total * torch.cuda.get_per_process_memory_fraction(device))  # where several processes share a GPU
    return Memory(free=min(free, own - reserved), reserved=reserved)
