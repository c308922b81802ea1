"""Keeps passwords, tokens and signatures in URLs out of everything that is stored or printed.

Credentials belong in the environment (MLFLOW_TRACKING_URI, MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY) or in the
configuration of fsspec. In a file or on a command line they are refused; in the messages of libraries they are hidden.
"""

import re

from tuner.errors import ConfigError

HIDDEN = "***"
# The part between :// and the last @ if it contains a colon; an unquoted password may contain / and @. For http(s) also
# without a colon, because a token is often given as the user. For other schemes, a user alone is no secret, and neither
# is the container in abfs://container@host.
_USER = re.compile(r"(?P<scheme>\w[\w+.-]*://)[^\s/@:'\"]*:[^\s'\"]*@|(?P<web>https?://)[^\s/@'\"]*@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:password|passwd|passphrase|pwd|secret|token|signature|credentials?|sig|key|accesskeyid"
    r"|access_key_id|googleaccessid)=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A URL, or a text with URLs, with its credentials hidden: `postgresql://***@host/db`, `?X-Amz-Signature=***`."""
    text = _USER.sub(lambda found: f"{found['scheme'] or found['web']}{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)


def has_credentials(url: str) -> bool:
    """Whether a URL contains credentials that are not hidden."""
    return redacted(url) != url


def refuse_credentials(url: str, where: str, instead: str) -> None:
    """Refuse a URL with credentials in a place that others can read.

    Args:
        url: as the user gave it.
        where: the option or setting that has the URL, such as `--tracking-uri`.
        instead: where the credentials belong, the end of the message.

    Raises:
        ConfigError: the URL contains credentials; the message shows the URL without them.
    """
    if has_credentials(url):
        raise ConfigError(f"{where}: {redacted(url)} holds credentials, which others could read there; {instead}")
