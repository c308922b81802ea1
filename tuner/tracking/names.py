"""Names and values as MLflow takes them: it refuses a whole batch for one key that it cannot store.

A key may have letters, digits, `_ - . /` and spaces, is no path with empty, `.` or `..` parts, and has at most 250
characters; a key of ours can have others, such as a feature called `rgb[0]`. Values have a largest length.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST_KEY = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 5000  # in all versions and stores
LONGEST_SOURCE = 65535  # of a dataset
PARAMS_AT_ONCE = 100


def with_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the keys that MLflow takes; those that it would refuse are changed, each to one of its own."""
    changed: dict[str, Any] = {key: value for key, value in values.items() if as_key(key) == key}
    for key, value in values.items():
        if as_key(key) != key:
            own = as_key(key)
            changed[own if own not in changed else as_key(f"{own}-{_digest(key)}")] = value
    return changed


def as_key(key: str) -> str:
    """The key that MLflow takes and that is most like `key`; the same where it takes `key` itself."""
    taken = re.sub(r"[^\w./ -]", "_", key) or "_"
    if posixpath.normpath(taken) != taken or taken.startswith((".", "/")):
        taken = re.sub(r"^\.+", "_", taken.replace("/", "_"))
    return taken if len(taken) <= LONGEST_KEY else f"{taken[: LONGEST_KEY - 9]}-{_digest(key)}"


def shortened(value: Any, longest: int) -> str:
    """A value as text of at most so many characters."""
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def params(values: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Parameters as MLflow takes them, as many at once as it takes in one request.

    Args:
        values: of the parameters.
        known: what MLflow has already, which it refuses to change.
    """
    new = [(key, shortened(value, LONGEST_PARAM)) for key, value in with_keys(values).items() if key not in known]
    for i in range(0, len(new), PARAMS_AT_ONCE):
        yield dict(new[i : i + PARAMS_AT_ONCE])


def tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them."""
    return {key: shortened(value, LONGEST_TAG) for key, value in with_keys(values).items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
