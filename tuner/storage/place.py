"""Where a command line looks when it is not told: the experiments' file, the searches' folder, this environment.

A place is a folder or the URL of one in an object store. Its `Path` or `UPath` have the same methods; what else differs
there is the business of tuner/storage/folders.py, tuner/storage/append_log.py and tuner/storage/lock.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from upath import UPath

from data.remote import EXTRAS
from tuner.errors import ConfigError, TunerError
from tuner.redact import redacted, refuse_credentials

Place = Path | UPath
# Object stores by what their URLs begin with. All of them are consistent and, if so asked, create an object only where
# there is none: journal and lock of a search stand on that.
STORES = {*EXTRAS, "memory"}


def place(named: str, where: str) -> Place:
    """The folder or the URL of that name; a URL's store is asked whether it answers.

    Args:
        named: a path, or a URL of file:// or of an object store.
        where: the option that names it.

    Raises:
        ConfigError: a URL with credentials in it, or of no store that this program knows; its driver is missing, or the
            store does not answer, has no such bucket, or lets nobody list it.
    """
    protocol, is_a_url, rest = named.partition("://")
    if not is_a_url:
        return Path(named)
    if protocol in ("file", "local"):
        return Path(rest)
    refuse_credentials(named, where, "give them by environment variables, a profile or a role, as the store's tools do")
    if protocol not in STORES:
        raise ConfigError(f"{where} {named}: must be a folder, or a URL that begins with s3:// or gs://")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ConfigError(f'{where} {named}: pip install "video-tuner[{EXTRAS[protocol]}]" first') from error
    # A listing that was kept would not show what other processes have written since.
    url = UPath(named.rstrip("/"), use_listings_cache=False)
    with translated(f"{where} {named}"):
        try:
            url.fs.ls(url.path)
        except FileNotFoundError as error:
            if error.__cause__ is not None:  # the store's answer: no such bucket; else there is only nothing there yet
                raise
    return url


def is_url(place: Place) -> bool:
    """Whether every machine sees it; a folder may be one machine's own."""
    return not isinstance(place, Path)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Tell what goes wrong with a store in the block in a sentence that begins with `what`.

    Raises:
        ConfigError: in place of whatever the store's library raises.
    """
    try:
        yield
    except TunerError:
        raise
    except Exception as error:  # each library has its own: those of S3's are no OSErrors
        words = (getattr(error, "strerror", None) or str(error)).splitlines()
        raise ConfigError(f"{what}: {redacted(words[0]) if words else type(error).__name__}") from error
