"""One driver for an experiment in a storage: a lock beside its searches, and who holds it.

`<storage>/<experiment>/driver.lock` is held by the driver's process, and free again however that ends; `driver.json`
beside it says who that is, for the one who is refused.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tuner.errors import SearchError


@contextmanager
def only_driver(folder: Path, search_id: str) -> Iterator[None]:
    """Be the only driver of the searches in `folder` while the block runs.

    Args:
        folder: of an experiment in the storage; made where it is missing.
        search_id: the search that this driver runs.

    Raises:
        SearchError: there is another one, which it names; or the folder cannot be written.
    """
    lock, owner = FileLock(folder / "driver.lock"), folder / "driver.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SearchError(
            f"{_describe(owner)} in {folder}; wait for its end or stop it, or choose another --storage"
        ) from error
    except OSError as error:
        raise SearchError(f"{folder}: cannot be written ({error.strerror}); choose another --storage") from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        facts = {"search": search_id, "process": os.getpid(), "host": os.uname().nodename, "since": since}
        owner.write_text(json.dumps(facts))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _describe(owner: Path) -> str:
    with suppress(OSError, ValueError):  # it is just being written, or removed
        return "search {search} is being run by process {process} on {host} since {since}".format_map(
            json.loads(owner.read_text())
        )
    return "another driver is running a search"
