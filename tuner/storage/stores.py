"""From the name of a place to the place: a registry of the stores, by what their URLs begin with.

To add an object store that fsspec has a driver for, add a line to `tuner.storage.urls.PATHS`, and its pip extra to
`data.remote.EXTRAS` and pyproject.toml. Where the store cannot do what `ObjectLocation` needs, add a class beside it,
and a line to `LOCATIONS`.
"""

from pathlib import Path

import fsspec
from upath import UPath

from data.remote import EXTRAS
from data.retry import FIRST_PATIENCE_SECONDS, retried
from tuner.errors import ConfigError
from tuner.redact import refuse_credentials
from tuner.storage.local import LocalLocation
from tuner.storage.objects import ObjectLocation
from tuner.storage.place import Location, Place, store_errors
from tuner.storage.urls import PATHS

LOCATIONS: dict[str, type[Location]] = dict.fromkeys(PATHS, ObjectLocation)


def at(place: Place) -> Location:
    """The operations on a place that depend on where it is."""
    return LocalLocation(place) if isinstance(place, Path) else LOCATIONS[place.protocol](place)


def place(name: str, option: str) -> Place:
    """The folder or the URL of that name. A URL's store is asked once, to see whether it answers.

    Args:
        name: a path, or a URL of file:// or of an object store.
        option: the option of the command line that names it, for error messages.

    Raises:
        ConfigError: the URL contains credentials or belongs to no known store; the store's driver is not installed; or
            the store does not answer, has no such bucket, or does not allow listing it.
    """
    protocol, is_a_url, rest = name.partition("://")
    if not is_a_url:
        return Path(name)
    if protocol in ("file", "local"):
        return Path(rest)
    refuse_credentials(name, option, "give them by environment variables, a profile or a role, as the store's tools do")
    if protocol not in LOCATIONS:
        raise ConfigError(f"{option} {name}: must be a folder, or a URL that begins with s3:// or gs://")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ConfigError(f'{option} {name}: pip install "video-tuner[{EXTRAS[protocol]}]" first') from error
    # A cached listing would not show what other processes have written since.
    url = UPath(name.rstrip("/"), use_listings_cache=False)
    with store_errors(f"{option} {name}"):
        try:
            store = fsspec.filesystem(protocol, **url.storage_options)
            retried(lambda: store.ls(url.path), f"{option} {name}", patience=FIRST_PATIENCE_SECONDS)
        except FileNotFoundError as error:
            if error.__cause__ is not None:  # the store says that the bucket does not exist; else the folder is empty
                raise
    return url
