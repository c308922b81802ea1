"""MLflow, written by the driver alone: a parent run per search, a child run per trial.

One thread does all the writing, in order (tuner/tracking/outbox.py): a slow or absent server never holds up the
search, and
SQLite has a single writer. Runs are found by their tags (`search_id`, `trial_id`), so a resumed search goes on with the
runs it had, and a write whose answer was lost is not made twice.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tuner import redact
from tuner.errors import SearchError
from tuner.redact import redacted
from tuner.storage.journal import TrialHistory
from tuner.tracking import outbox
from tuner.tracking.outbox import Outbox

# Runs that a query may return at once, of which there may be more; MLflow's own upper limit is 50,000.
MAX_RUNS = 10_000
PARENT_TAG = "mlflow.parentRunId"
# Of a run whose trial is over; KILLED is one that a resume goes on with.
ENDED = ("FINISHED", "FAILED")
# Opens the UI on runs and metrics, not on traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
SQLITE = "sqlite:///"  # what the URI of a database file begins with
# MLflow's client would repeat a request itself, for minutes, and so make a run twice whose first answer was lost. Here
# the outbox repeats, after a look at what is there.
HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # of an answer, in seconds; not of an upload
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# What MLflow calls an error that may pass: a server that is gone or broken, a locked database.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
# Patience at the end of a search that was interrupted: a resume tells what is left.
SHORT_PATIENCE_SECONDS = 10.0


def default_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite file beside the yaml."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def choose_uri(given: str | None, stored: str | None, folder: Path) -> str:
    """The URI of a search's MLflow: of the command line, else where the search logged so far, else the default.

    Args:
        given: on the command line.
        stored: in the search's journal, without its credentials; None for a new search.
        folder: of the yaml.

    Raises:
        ConfigError: there are credentials on the command line.
        SearchError: there were credentials in the URI, and the environment no longer gives them.
    """
    if given:
        instead = "a command line is seen by everybody on the machine: set MLFLOW_TRACKING_URI instead"
        redact.refuse_credentials(given, "--tracking-uri", instead)
        return given
    if stored is None or redact.HIDDEN not in stored:
        return stored or default_uri(folder)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise SearchError(f"MLflow at {stored}: credentials are not stored; set MLFLOW_TRACKING_URI to go on there")
    return os.environ["MLFLOW_TRACKING_URI"]


def ui_command(program: str, uri: str) -> str:
    """The command that shows the results in a browser.

    Args:
        program: the command that runs MLflow here, such as `mlflow` or `.venv/bin/mlflow`.
        uri: of the server or the database.
    """
    if uri.startswith(("http:", "https:")):
        return f"open {redacted(uri)}"
    return f"{program} ui --backend-store-uri {redacted(uri)}"


def _connect(uri: str) -> str:
    """Settle how MLflow talks to a server; returns the URI that it shall know.

    The credentials of a server are handed over in MLflow's own variables, so that no error message can show them.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in HTTP_SETTINGS.items()})
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not (parts.username and parts.password):
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class Tracker:
    """Writes one search into MLflow."""

    def __init__(self, uri: str, experiment: str, tags: Mapping[str, str]) -> None:
        """Connect, make the database and the experiment where they are missing, and start the writing thread.

        Args:
            uri: of the tracking server or database.
            experiment: its name in MLflow.
            tags: of every run, such as `environment_tags`.

        Raises:
            SearchError: MLflow cannot be reached or refuses.
        """
        self.uri, self._tags = _connect(uri), dict(tags)
        uri = self.uri
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            mlflow.set_tracking_uri(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id
                if found
                else self.client.create_experiment(experiment, _artifacts(uri, experiment), EXPERIMENT_TAGS)
            )
        except Exception as error:  # whatever its store raises, of which there are many
            raise SearchError(_unreachable(uri, error)) from None  # its message may show credentials
        self.parent_id = ""
        self._runs: dict[str, str] = {}  # MLflow run by trial id
        self._logged: dict[str, set[int]] = {}  # epochs that MLflow already has, by trial id
        self._closed: set[str] = set()  # trials whose runs an earlier driver closed
        self._outbox = Outbox(_is_passing, self._answers)

    def start_search(self, search_id: str, *, tags: Mapping[str, str], params: Mapping[str, Any], yaml: str) -> None:
        """Open the parent run, or the one that this search had."""

        def write() -> None:
            self.parent_id = self._find_or_create("search_id", search_id, search_id, {"search_id": search_id, **tags})
            children = self._children()
            self._closed = {run.data.tags.get("trial_id", "") for run in children if run.info.status in ENDED}
            self._log_params(self.parent_id, params)
            self.client.log_text(self.parent_id, yaml, "experiment.yaml")

        self._outbox.put(write)

    def log_data(self, *, name: str, fingerprint: str, source: str, num_videos: int, schema: str) -> None:
        """Log what the search trains on as an MLflow dataset."""

        def write() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name=name,
                digest=fingerprint[:36],
                source_type="tfrecord",
                source=redacted(source),
                schema=schema,
                profile=f'{{"num_videos": {num_videos}}}',
            )
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])]
            self.client.log_inputs(self.parent_id, inputs)

        self._outbox.put(write)

    def start_trial(self, trial: TrialHistory, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the trial's run, or the one that it had before its search was interrupted."""

        def write() -> None:
            if trial.id in self._closed:
                return
            own = {"trial_id": trial.id, "trial_number": str(trial.number), PARENT_TAG: self.parent_id, **tags}
            run_id = self._find_or_create("trial_id", trial.id, f"trial {trial.number:03d}", own)
            self._runs[trial.id] = run_id
            self._logged[trial.id] = {metric.step for metric in self.client.get_metric_history(run_id, "gap")}
            self._log_params(run_id, params)

        self._outbox.put(write)

    def report(self, trial_id: str, epoch: int, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Log one epoch, all of its metrics at once."""
        now = int(time.time() * 1000)

        def write() -> None:
            from mlflow.entities import Metric, RunTag

            if trial_id in self._closed or epoch in self._logged[trial_id]:
                return
            self.client.log_batch(
                self._runs[trial_id],
                metrics=[Metric(key, float(value), now, epoch) for key, value in metrics.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            self._logged[trial_id].add(epoch)

        self._outbox.put(write)

    def finish_trial(self, trial: TrialHistory, num_ended: int, best: float | None) -> None:
        """Close the trial's run; the parent run shows the best score after that many trials."""
        now = int(time.time() * 1000)

        def write() -> None:
            if trial.id in self._closed:
                return
            run_id = self._runs[trial.id]
            if trial.stopped_by:
                self.client.set_tag(run_id, "stopped_by", trial.stopped_by)
            if trial.error:
                self.client.set_tag(run_id, "error", redacted(trial.error)[:5000])
            self.client.set_terminated(run_id, "FAILED" if trial.status == "failed" else "FINISHED")
            if best is not None:
                self.client.log_metric(self.parent_id, "gap_best", best, now, num_ended)

        self._outbox.put(write)

    def suspend_trials(self) -> None:
        """Close the runs of the trials that a resume will go on with."""

        def write() -> None:
            for run in self._children():
                if run.info.status == "RUNNING":
                    self.client.set_terminated(run.info.run_id, "KILLED")

        self._outbox.put_last(write)

    def log_winner(
        self,
        *,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        log_model: Callable[[str, str], None],
        tables: Mapping[str, str] | None = None,
    ) -> None:
        """Log the winner's scores on the whole of a split into the parent run, and its model.

        Args:
            metrics: by key, such as `best/validate/gap`.
            tags: of the parent run.
            log_model: called as `log_model(run_id, tracking_uri)` on the writing thread.
            tables: artifacts by file name, each the text of a csv.
        """

        def write() -> None:
            from mlflow.entities import Metric, RunTag

            now = int(time.time() * 1000)
            self.client.log_batch(
                self.parent_id,
                metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
                tags=[RunTag(key, str(value)) for key, value in tags.items()],
            )
            for name, text in (tables or {}).items():
                self.client.log_text(self.parent_id, text, name)
            log_model(self.parent_id, self.uri)

        self._outbox.put(write)

    def end_search(self, status: str) -> None:
        """Close the parent run: FINISHED, FAILED, or KILLED where a resume will go on."""

        def write() -> None:
            self.client.set_terminated(self.parent_id, "KILLED" if self._outbox.undelivered else status)

        self._outbox.put_last(write)

    def close(self, patience: float | None = None, say: Callable[[str], None] = print) -> int:
        """Write what is left and stop; returns how many writes a server that stayed away never got.

        Args:
            patience: seconds that it may stay away; None: PATIENCE_SECONDS.
            say: is told that there is something to wait for.
        """
        return self._outbox.close(outbox.PATIENCE_SECONDS if patience is None else patience, say)

    @property
    def refused(self) -> list[str]:
        """What MLflow said to the writes that it will never take."""
        return self._outbox.refused

    def _answers(self) -> bool:
        try:
            return bool(self.client.get_experiment(self.experiment_id))
        except Exception:  # whatever is wrong with it now
            return False

    def _find_or_create(self, tag: str, value: str, name: str, tags: Mapping[str, str]) -> str:
        runs = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'")
        found = [run for run in runs if tag == "trial_id" or PARENT_TAG not in run.data.tags]
        if found:
            run_id: str = found[0].info.run_id
            self.client.set_terminated(run_id, "RUNNING")
            return run_id
        run = self.client.create_run(self.experiment_id, run_name=name, tags={**self._tags, **tags})
        return str(run.info.run_id)

    def _children(self) -> list[Any]:
        query = f"tags.`{PARENT_TAG}` = '{self.parent_id}'"
        runs: list[Any] = []
        token: str | None = None  # of the next page; "" after the last one
        while token != "":
            page = self.client.search_runs([self.experiment_id], query, max_results=MAX_RUNS, page_token=token)
            runs, token = runs + list(page), page.token or ""
        return runs

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow refuses to change a parameter, such as the number of trials of a search that was extended.
        known = self.client.get_run(run_id).data.params
        new = [Param(key, str(value)) for key, value in params.items() if key not in known]
        self.client.log_batch(run_id, params=new)


def _artifacts(uri: str, experiment: str) -> str | None:
    """Beside a SQLite file, wherever the search was started; a server knows its own place."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / experiment).as_uri()


def _is_passing(error: Exception) -> bool:
    """Whether the same write may succeed later: a server that is gone or a locked database, not a refusal."""
    from mlflow.exceptions import MlflowException

    response = getattr(error, "response", None)  # of requests, which carries the artifacts
    if response is not None:
        return bool(response.status_code >= 500 or response.status_code in (408, 429))
    if isinstance(error, MlflowException):
        return error.error_code in PASSING
    return isinstance(error, OSError)  # among them all that requests and sockets raise, and a full disk


def _unreachable(uri: str, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = "; for PostgreSQL: pip install 'video-tuner[postgresql]'"
    return f"MLflow at {redacted(uri)}: {redacted(first)}{hint}"


def trial_of_run(run_id: str, uri: str) -> str | None:
    """The trial_id of an MLflow run; None where there is no such run or it is not a trial's.

    Raises:
        SearchError: MLflow cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None  # MLflow would make the database to look into it
    try:
        tags: dict[str, str] = mlflow.MlflowClient(tracking_uri=_connect(uri)).get_run(run_id).data.tags
    except MlflowException as error:
        if _is_passing(error):
            raise SearchError(_unreachable(uri, error)) from None
        return None
    return tags.get("trial_id")


def register_model(
    run_id: str, tracking_uri: str, *, name: str, model: Any, example: Any, metadata: dict[str, Any]
) -> None:
    """Log `model` (torch.export format) into the run and register it as the newest `name`@best; made once per trial.

    Args:
        run_id: the run that gets the model.
        tracking_uri: of its store.
        name: of the registered model.
        model: an nn.Module in eval mode, on the CPU.
        example: float32 array [2, D] of real videos, or (uint8 [2, T, D], bool [2, T]) of their frames and mask, for
            signature and input example.
        metadata: stored with the model; its `trial` tells which models of the run are the same.
    """
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    run, tags = client.get_run(run_id), {"trial_id": str(metadata["trial"])}
    of_run = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    known = [logged for logged in of_run if logged.tags.items() >= tags.items()]  # perhaps left half done
    logged = known[0] if known else client.create_logged_model(run.info.experiment_id, "model", run_id, tags)
    if logged.status != "READY":
        outputs = run.outputs.model_outputs if run.outputs else []
        linked = any(output.model_id == logged.model_id for output in outputs)  # which MLflow refuses to do twice
        _log_model(None if linked else run_id, logged.model_id, model, example, metadata)
    source = f"models:/{logged.model_id}"
    versions = [version for version in client.search_model_versions(f"name = '{name}'") if version.source == source]
    version = versions[0] if versions else mlflow.register_model(source, name, await_registration_for=None)
    client.set_registered_model_alias(name, "best", version.version)


def _log_model(run_id: str | None, model_id: str, model: Any, example: Any, metadata: dict[str, Any]) -> None:
    import mlflow
    import torch
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    frames = isinstance(example, tuple)
    shapes = (
        {"frames": (-1, -1, example[0].shape[2]), "mask": (-1, -1)} if frames else {"features": (-1, example.shape[1])}
    )
    inputs = example if frames else (example,)
    input_example: Any = list(example) if frames else example
    with torch.inference_mode():
        logits = model(*map(torch.from_numpy, inputs)).numpy()
    specs: list[Any] = [
        TensorSpec(array.dtype, shape, name) for array, (name, shape) in zip(inputs, shapes.items(), strict=True)
    ]
    signature = ModelSignature(
        inputs=Schema(specs),
        outputs=Schema([TensorSpec(logits.dtype, (-1, logits.shape[1]), "logits")]),
    )
    # Not within mlflow.start_run, which a server that goes away would leave open.
    mlflow.pytorch.log_model(
        model,
        run_id=run_id,
        model_id=model_id,
        serialization_format="pt2",
        signature=signature,
        input_example=input_example,
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        metadata=metadata,
    )


def environment_tags(folder: Path) -> dict[str, str]:
    """What a run was made with: program, user, git commit, dirty flag and versions."""
    from importlib.metadata import version

    tags = {
        "mlflow.source.name": "tune.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER") or str(os.getuid()),
    }
    tags |= {f"version.{name}": version(name) for name in ("torch", "ray", "optuna", "mlflow", "numpy")}
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        tags["git_commit"] = tags["mlflow.source.git.commit"] = commit
        tags["git_dirty"] = str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
