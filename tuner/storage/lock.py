"""One driver for an experiment in a storage: a lock beside its searches, and who holds it.

`<storage>/<experiment>/driver.lock` is held by the driver's process, and free again however that ends; `driver.json`
beside it says who that is, for the one who is refused. In an object store it is a lease (tuner/storage/lease.py).
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tuner.errors import SearchError
from tuner.storage.lease import Lease, refusal
from tuner.storage.place import Place, translated


@contextmanager
def only_driver(folder: Place, search_id: str) -> Iterator[Callable[[], None]]:
    """Be the only driver of the searches in `folder` while the block runs.

    Args:
        folder: of an experiment in the storage; made where it is missing.
        search_id: the search that this driver runs.

    Yields:
        What to call before anything is written: raises SearchError where another driver has taken over.

    Raises:
        SearchError: there is another one, which it names; or the folder cannot be written.
        ConfigError: an object store cannot be written.
    """
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    facts = {"search": search_id, "process": os.getpid(), "host": os.uname().nodename, "since": since}
    if isinstance(folder, Path):
        with _file_lock(folder, facts):
            yield lambda: None
        return
    with translated(str(folder)):
        lease = Lease(folder, facts, _describe)
    try:
        yield lease.check
    finally:
        lease.release()


@contextmanager
def _file_lock(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    lock, owner = FileLock(folder / "driver.lock"), folder / "driver.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # it is just being written, or removed
            known = json.loads(owner.read_text())
        raise refusal(_describe(known), folder) from error
    except OSError as error:
        raise SearchError(f"{folder}: cannot be written ({error.strerror}); choose another --storage") from error
    try:
        owner.write_text(json.dumps(facts))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _describe(facts: Mapping[str, Any]) -> str:
    if not facts:
        return "another driver is running a search"
    return "search {search} is being run by process {process} on {host} since {since}".format_map(facts)
