"""Credentials stay out of what is stored and shown: passwords, tokens and signatures in URLs.

They belong in the environment (MLFLOW_TRACKING_URI, MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY) or in fsspec's own
configuration. Where one stands in a file or on a command line it is refused; where a library prints one, it is hidden.
"""

import re

from tuner.errors import ConfigError

HIDDEN = "***"
# What stands between :// and the last @ where it has a colon (an unquoted password may hold / and @); over http(s) even
# without one, since a token is often given as the user. A user alone is no secret, nor is the container of abfs://c@host.
_USER = re.compile(r"(?P<scheme>\w[\w+.-]*://)[^\s/@:'\"]*:[^\s'\"]*@|(?P<web>https?://)[^\s/@'\"]*@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:password|passwd|passphrase|pwd|secret|token|signature|credentials?|sig|key|accesskeyid"
    r"|access_key_id|googleaccessid)=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A URL, or a text with URLs in it, without its credentials: `postgresql://***@host/db`, `?X-Amz-Signature=***`."""
    text = _USER.sub(lambda found: f"{found['scheme'] or found['web']}{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)


def has_credentials(url: str) -> bool:
    """Whether there is something in it that nobody else may see; not where it is hidden already."""
    return redacted(url) != url


def refuse_credentials(url: str, where: str, instead: str) -> None:
    """Let nobody write a password into a file or a command line.

    Args:
        url: what was given.
        where: the option or setting, such as `--tracking-uri`.
        instead: where the credentials belong.

    Raises:
        ConfigError: there are credentials in it; the message has the URL without them.
    """
    if has_credentials(url):
        raise ConfigError(f"{where}: {redacted(url)} holds credentials, which others could read there; {instead}")
