"""At most one driver for the searches of an experiment in a storage."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from tuner.storage.place import Place
from tuner.storage.stores import at


def only_driver(folder: Place, search_id: str) -> AbstractContextManager[Callable[[], None]]:
    """Hold the lock of an experiment's folder during the block.

    Args:
        folder: of the experiment in the storage; it is created where it does not exist.
        search_id: the search that this driver runs.

    Yields:
        A function to call before every write; it raises SearchError once another driver has taken over.

    Raises:
        SearchError: another driver is running, which the message names; or the folder cannot be written.
        ConfigError: an object store cannot be written.
    """
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    driver = {"search": search_id, "process": os.getpid(), "host": os.uname().nodename, "since": since}
    return at(folder).lock(driver, _describe)


def _describe(driver: Mapping[str, Any]) -> str:
    if not driver:
        return "another driver is running a search"
    return "search {search} is being run by process {process} on {host} since {since}".format_map(driver)
