"""Which MLflow a search writes to, and how MLflow's client reaches it."""

import os
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from tuner.errors import SearchError
from tuner.redact import HIDDEN, redacted, refuse_credentials

SQLITE = "sqlite:///"  # the URI of a database file begins with this
# MLflow's client must not repeat a request by itself: it would do so for minutes, and would create a run twice where
# only the first answer was lost. The outbox repeats instead, after it has looked at what exists.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds to wait for an answer; does not apply to uploads
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def default_uri(folder: Path) -> str:
    """$MLFLOW_TRACKING_URI where it is set, else the SQLite file mlflow.db in `folder`, which is that of the yaml."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{(folder / 'mlflow.db').resolve()}"


def choose_uri(given: str | None, stored: str | None, folder: Path) -> str:
    """The URI of the MLflow server or database that a search writes to.

    Args:
        given: the value of --tracking-uri, which comes first.
        stored: the URI in the search's journal, without its credentials; None for a new search. It comes second.
        folder: of the yaml, for `default_uri`.

    Raises:
        ConfigError: the value of --tracking-uri contains credentials.
        SearchError: the stored URI had credentials, and MLFLOW_TRACKING_URI is not set.
    """
    if given:
        instead = "every user of the machine can read a command line: set MLFLOW_TRACKING_URI instead"
        refuse_credentials(given, "--tracking-uri", instead)
        return given
    if stored is None or HIDDEN not in stored:
        return stored or default_uri(folder)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise SearchError(f"MLflow at {stored}: credentials are not stored; set MLFLOW_TRACKING_URI to continue there")
    return os.environ["MLFLOW_TRACKING_URI"]


def ui_command(program: str, uri: str) -> str:
    """The command that shows the results in a browser.

    Args:
        program: the command that runs MLflow here, such as `mlflow` or `.venv/bin/mlflow`.
        uri: of the server or the database.
    """
    if uri.startswith(("http:", "https:")):
        return f"open {redacted(uri)}"
    return f"{program} ui --backend-store-uri {shlex.quote(redacted(uri))}"


def configure_client(uri: str) -> str:
    """Set the environment variables that MLflow's client reads.

    A user and a password in the URI of a server go into such variables, so that no error message can show them.

    Returns:
        The URI to give to MLflow, without that user and password.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _CLIENT_SETTINGS.items()})
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not (parts.username and parts.password):
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def artifact_location(uri: str, experiment: str) -> str | None:
    """The folder of the artifacts of an MLflow experiment, beside a SQLite file; None where a server decides."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / experiment).as_uri()
