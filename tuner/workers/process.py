"""The state of a process that trials share: put back before each trial, so that a used process is as good as a new one.

Runs without Ray: `tuner.train`, which trains one trial in a new process, begins with the same function.
"""

import ctypes
import gc
import platform
import random

import numpy as np
import psutil
import torch

GLIBC = platform.libc_ver()[0] == "glibc"


def begin_trial(device: torch.device, threads: int) -> None:
    """Put everything that a trial may change in its process back to what a new process has.

    The generators get fixed seeds: those of torch are seeded by each trial again, and nothing may depend on the others.

    Args:
        device: where the trial trains.
        threads: of torch, where it trains on the CPU; a trial on a GPU keeps those that torch has chosen.
    """
    gc.collect()  # the models and batches of the trial before, where they refer to each other
    if GLIBC:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # a worker keeps the memory of its trial otherwise (tuner/workers/train_run.py)
    random.seed(0)
    np.random.seed(0)  # the global generator, which a library may use
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")
    torch.clear_autocast_cache()
    torch.compiler.reset()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.empty_cache()  # a small model after a large one finds the memory in one piece
        torch.cuda.reset_peak_memory_stats(device)


def memory_gib() -> float:
    """The resident memory of this process, in GiB."""
    return psutil.Process().memory_info().rss / 2**30
