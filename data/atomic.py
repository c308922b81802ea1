"""Files that are either written as a whole or not at all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file that replaces `path` when the block ends; removes it when the block raises.

    The file is flushed to the disk before it replaces the other, so after a power failure one of the two is there. Its
    name ends like that of `path`, because the suffix may select the format.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
