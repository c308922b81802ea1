"""MLflow, written by the driver alone: a parent run per search, a child run per trial.

One thread does all the writing, in order: a slow or absent server never holds up the search, and SQLite has a single
writer. Runs are found by their tags (`search_id`, `trial_id`), so a resumed search goes on with the runs it had.
"""

import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.errors import SearchError
from tuner.journal import TrialRecord

# Runs that a query may return at once, of which there may be more; MLflow's own upper limit is 50,000.
MAX_RUNS = 10_000
# Seconds between two attempts to reach a server that does not answer, and how long to go on trying at the end.
RETRY_SECONDS, PATIENCE_SECONDS = 2.0, 120.0
PARENT_TAG = "mlflow.parentRunId"
# Of a run whose trial is over; KILLED is one that a resume goes on with.
ENDED = ("FINISHED", "FAILED")
# Opens the UI on runs and metrics, not on traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
SQLITE = "sqlite:///"  # what the URI of a database file begins with


def default_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite file beside the yaml."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def ui_command(uri: str) -> str:
    """What to type to browse the results."""
    return f"{paths.program('mlflow')} ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else f"open {uri}"


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
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri, self._tags = uri, dict(tags)
        try:
            mlflow.set_tracking_uri(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id
                if found
                else self.client.create_experiment(experiment, _artifacts(uri, experiment), EXPERIMENT_TAGS)
            )
        except (MlflowException, OSError) as error:
            raise SearchError(f"MLflow at {uri}: {str(error).splitlines()[0]}") from error
        self.parent_id = ""
        self._runs: dict[str, str] = {}  # MLflow run by trial id
        self._logged: dict[str, set[int]] = {}  # epochs that MLflow already has, by trial id
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed: set[str] = set()  # trials whose runs an earlier driver closed
        self._undelivered = 0
        self._closing_since: float | None = None
        self._thread = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._thread.start()

    def start_search(self, search_id: str, *, tags: Mapping[str, str], params: Mapping[str, Any], yaml: str) -> None:
        """Open the parent run, or the one that this search had."""

        def write() -> None:
            self.parent_id = self._find_or_create("search_id", search_id, search_id, {"search_id": search_id, **tags})
            children = self._children()
            self._closed = {run.data.tags.get("trial_id", "") for run in children if run.info.status in ENDED}
            self._log_params(self.parent_id, params)
            self.client.log_text(self.parent_id, yaml, "experiment.yaml")

        self._work.put(write)

    def log_data(self, *, name: str, fingerprint: str, source: str, num_videos: int, schema: str) -> None:
        """Log what the search trains on as an MLflow dataset."""

        def write() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name=name,
                digest=fingerprint[:36],
                source_type="tfrecord",
                source=source,
                schema=schema,
                profile=f'{{"num_videos": {num_videos}}}',
            )
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])]
            self.client.log_inputs(self.parent_id, inputs)

        self._work.put(write)

    def start_trial(self, trial: TrialRecord, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the trial's run, or the one that it had before its search was interrupted."""

        def write() -> None:
            if trial.id in self._closed:
                return
            own = {"trial_id": trial.id, "trial_number": str(trial.number), PARENT_TAG: self.parent_id, **tags}
            run_id = self._find_or_create("trial_id", trial.id, f"trial {trial.number:03d}", own)
            self._runs[trial.id] = run_id
            self._logged[trial.id] = {metric.step for metric in self.client.get_metric_history(run_id, "gap")}
            self._log_params(run_id, params)

        self._work.put(write)

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

        self._work.put(write)

    def finish_trial(self, trial: TrialRecord, num_ended: int, best: float | None) -> None:
        """Close the trial's run; the parent run shows the best score after that many trials."""
        now = int(time.time() * 1000)

        def write() -> None:
            if trial.id in self._closed:
                return
            run_id = self._runs[trial.id]
            if trial.stopped_by:
                self.client.set_tag(run_id, "stopped_by", trial.stopped_by)
            if trial.error:
                self.client.set_tag(run_id, "error", trial.error[:5000])
            self.client.set_terminated(run_id, "FAILED" if trial.status == "failed" else "FINISHED")
            if best is not None:
                self.client.log_metric(self.parent_id, "gap_best", best, now, num_ended)

        self._work.put(write)

    def suspend_trials(self) -> None:
        """Close the runs of the trials that a resume will go on with."""

        def write() -> None:
            for run in self._children():
                if run.info.status == "RUNNING":
                    self.client.set_terminated(run.info.run_id, "KILLED")

        self._work.put(write)

    def log_winner(
        self, *, metrics: Mapping[str, float], tags: Mapping[str, str], log_model: Callable[[str, str], None]
    ) -> None:
        """Log the winner's scores on the whole of a split into the parent run, and its model.

        Args:
            metrics: by key, such as `best/validate/gap`.
            tags: of the parent run.
            log_model: called as `log_model(run_id, tracking_uri)` on the writing thread.
        """

        def write() -> None:
            from mlflow.entities import Metric, RunTag

            now = int(time.time() * 1000)
            self.client.log_batch(
                self.parent_id,
                metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
                tags=[RunTag(key, str(value)) for key, value in tags.items()],
            )
            log_model(self.parent_id, self.uri)

        self._work.put(write)

    def end_search(self, status: str) -> None:
        """Close the parent run: FINISHED, FAILED, or KILLED where a resume will go on."""
        self._work.put(lambda: self.client.set_terminated(self.parent_id, status))

    def close(self) -> int:
        """Write what is left and stop; returns how many writes a server that stayed away never got."""
        self._closing_since = time.monotonic()
        self._work.put(None)
        self._thread.join()
        return self._undelivered

    def _write(self) -> None:
        while (write := self._work.get()) is not None:
            while True:
                try:
                    write()
                    break
                except Exception as error:
                    # MLflow raises whatever its store raises. What is at stake is a record that the journal has as
                    # well, never the search: a write that may succeed later is tried again, in order, others are lost.
                    logging.getLogger(__name__).exception("MLflow did not take a write")
                    since = self._closing_since
                    if not _is_passing(error) or (since and time.monotonic() - since > PATIENCE_SECONDS):
                        self._undelivered += 1
                        break
                    time.sleep(RETRY_SECONDS)

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

    passing = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
    return isinstance(error, ConnectionError) or (isinstance(error, MlflowException) and error.error_code in passing)


def trial_of_run(run_id: str, uri: str) -> str | None:
    """The trial_id of an MLflow run; None where there is no such run or it is not a trial's."""
    import mlflow
    from mlflow.exceptions import MlflowException

    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None  # MLflow would make the database to look into it
    try:
        tags: dict[str, str] = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id).data.tags
    except MlflowException:
        return None
    return tags.get("trial_id")


def register_model(
    run_id: str, tracking_uri: str, *, name: str, model: Any, example: Any, metadata: dict[str, Any]
) -> None:
    """Log `model` (torch.export format, no pickle) into the run and register it as the newest `name`@best.

    Args:
        run_id: the run that gets the model.
        tracking_uri: of its store.
        name: of the registered model.
        model: an nn.Module in eval mode, on the CPU.
        example: float32 array [2, D] of real videos, for signature and input example.
        metadata: stored with the model.
    """
    import mlflow
    import torch
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_tracking_uri(tracking_uri)
    with torch.inference_mode():
        logits = model(torch.from_numpy(example)).numpy()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(example.dtype, (-1, example.shape[1]), "features")]),
        outputs=Schema([TensorSpec(logits.dtype, (-1, logits.shape[1]), "logits")]),
    )
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pytorch.log_model(
            model,
            name="model",
            serialization_format="pt2",
            signature=signature,
            input_example=example,
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            metadata=metadata,
        )
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    version = mlflow.register_model(info.model_uri, name, await_registration_for=None)
    client.set_registered_model_alias(name, "best", version.version)


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
