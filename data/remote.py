"""Shards behind URLs: the store's file system (fsspec), and the exceptions that it may raise."""

import sys
from typing import Any

# The extra of this project that installs a store's library, by the protocol of the store's URLs.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def filesystem(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, with an empty cache of listings, and the path in it.

    Raises:
        ValueError: fsspec knows no such protocol.
        ImportError: the store's library is not installed; the message says what to install.
    """
    import fsspec  # imported here, since only URLs need it

    protocol = url.partition("://")[0]
    try:
        found, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        raise ImportError(f'pip install "video-tuner[{extra}]" first' if extra else str(error)) from error
    found.invalidate_cache()
    return found, path


def errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns, for an `except` clause, `others` and those exceptions of the loaded stores that are no OSError."""
    roots = {
        "botocore.exceptions": "BotoCoreError",  # no answer, or no credentials
        "aiohttp": "ClientError",  # a broken connection
        "gcsfs.retry": "HttpError",
        "google.auth.exceptions": "GoogleAuthError",
    }
    return others + tuple(getattr(sys.modules[module], name) for module, name in roots.items() if module in sys.modules)
