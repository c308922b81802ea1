"""Shards behind URLs: the store's library by fsspec, and what it may raise."""

import sys
from typing import Any

# Extras of this package that bring a store's library, by what the store's URLs begin with.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; what it is asked, it looks up anew.

    Raises:
        ValueError: no library knows the protocol.
        ImportError: the library is missing; says what to install.
    """
    import fsspec  # imported here: only URLs need it

    protocol = url.partition("://")[0]
    try:
        found, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        raise ImportError(f'pip install "video-tuner[{extra}]" first' if extra else str(error)) from error
    found.invalidate_cache()
    return found, path


def errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """For an `except` clause: `others`, and what the stores' libraries that are loaded raise and is no OSError."""
    roots = {
        "botocore.exceptions": "BotoCoreError",  # no answer, no credentials
        "aiohttp": "ClientError",  # a connection that breaks
        "gcsfs.retry": "HttpError",
        "google.auth.exceptions": "GoogleAuthError",
    }
    return others + tuple(getattr(sys.modules[module], name) for module, name in roots.items() if module in sys.modules)
