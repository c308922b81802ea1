"""Imports of large libraries, in less time."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Do not search for garbage while the block imports modules, nor when this process ends.

    Torch and Ray create hundreds of thousands of objects that live as long as the process. Python would search them for
    garbage many times during the imports, and twice more at the end of the process.
    """
    enabled = gc.isenabled()
    gc.disable()
    atexit.register(gc.freeze)  # what is frozen is not searched
    try:
        yield
    finally:
        if enabled:
            gc.enable()
