"""MLflow, written by the driver alone: a parent run per search, a child run per trial.

One thread writes everything, in order (tuner/tracking/outbox.py): a slow or absent server does not delay the search,
and SQLite allows one writer. Runs are found by their tags (`search_id`, `trial_id`), so a resumed search continues its
runs, and a write whose answer was lost is not repeated.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from data.retry import may_pass
from tuner.errors import SearchError, first_line
from tuner.redact import redacted
from tuner.storage.journal import TrialHistory
from tuner.tracking import deleted, names, outbox
from tuner.tracking.outbox import Outbox
from tuner.tracking.records import outcome_tags
from tuner.tracking.uri import SQLITE, artifact_location, configure_client

# Runs that a query returns at once; there may be more. MLflow allows 50,000.
MAX_RUNS = 10_000
PARENT_TAG = "mlflow.parentRunId"
# States of a run whose trial has ended. A resumed search continues a run in state KILLED.
ENDED = ("FINISHED", "FAILED")
# The UI opens on runs and metrics, and not on traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# Codes of MLflow's errors after which the same write may succeed: the server is away or broken, the database is locked.
TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
# How long the end of an interrupted search waits for an absent server: a resumed search writes the rest.
SHORT_PATIENCE_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Tracker:
    """Writes the runs of one search into MLflow.

    All methods but the constructor and `close` return at once; the writes follow on the thread of the outbox.
    """

    def __init__(
        self, uri: str, experiment: str, tags: Mapping[str, str], print_line: Callable[[str], None] = _log.warning
    ) -> None:
        """Connect, create the database and the experiment where they do not exist, and start the writing thread.

        An experiment that somebody has deleted is restored, now and while the search runs, and so are its runs.

        Args:
            uri: of the tracking server or the database.
            experiment: the name of the experiment in MLflow.
            tags: of every run, such as `tuner.tracking.tags.environment_tags`.
            print_line: prints a sentence about what was restored.

        Raises:
            SearchError: MLflow cannot be reached, or refuses.
        """
        self.uri, self._tags, self._print_line = configure_client(uri), dict(tags), print_line
        uri = self.uri
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            mlflow.set_tracking_uri(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            if found and deleted.restore_experiment(self.client, found):
                self._tell_restored("the experiment")
            self.experiment_id = (
                found.experiment_id
                if found
                else self.client.create_experiment(experiment, artifact_location(uri, experiment), EXPERIMENT_TAGS)
            )
        except Exception as error:  # MLflow passes on whatever its many kinds of stores raise
            raise SearchError(_unreachable(uri, error)) from None  # the original message may show credentials
        self.parent_id = ""
        self._runs: dict[str, str] = {}  # id of the MLflow run by trial id, until it is closed
        self._logged: dict[str, set[int]] = {}  # epochs that MLflow has, by trial id
        self._closed: set[str] = set()  # ids of trials whose runs an earlier driver closed
        self._outbox = Outbox(_is_transient, self._answers, self._restore)

    def start_search(self, search_id: str, *, tags: Mapping[str, str], params: Mapping[str, Any], yaml: str) -> None:
        """Open the parent run; a resumed search continues the one it has."""

        def write() -> None:
            self.parent_id = self._find_or_create("search_id", search_id, search_id, {"search_id": search_id, **tags})
            children = self._children(self.parent_id)
            self._closed = {run.data.tags.get("trial_id", "") for run in children if run.info.status in ENDED}
            self._log_params(self.parent_id, params)
            self.client.log_text(self.parent_id, yaml, "experiment.yaml")

        self._outbox.put(write)

    def suspend_searches(self, search_ids: Iterable[str]) -> None:
        """Close the runs of searches whose drivers were killed; `start_search` opens them again."""

        def write() -> None:
            for search_id in search_ids:
                for parent in self.client.search_runs([self.experiment_id], f"tags.search_id = '{search_id}'"):
                    for run in (*self._children(parent.info.run_id), parent):
                        if run.info.status == "RUNNING":
                            self.client.set_terminated(run.info.run_id, "KILLED")

        self._outbox.put(write)

    def log_data(self, *, name: str, fingerprint: str, source: str, num_videos: int, schema: str) -> None:
        """Log a split of the data as an MLflow dataset of the parent run; `name` is that of the split."""

        def write() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name=name,
                digest=fingerprint[:36],
                source_type="tfrecord",
                source=names.shortened(redacted(source), names.LONGEST_SOURCE),
                schema=schema,
                profile=f'{{"num_videos": {num_videos}}}',
            )
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])]
            self.client.log_inputs(self.parent_id, inputs)

        self._outbox.put(write)

    def together(self, trial: TrialHistory) -> AbstractContextManager[None]:
        """Let what the block tells about a trial be one write: those of 10,000 past trials would fill the outbox."""
        return self._outbox.together(trial.id)

    def start_trial(self, trial: TrialHistory, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run of a trial; a resumed search continues the one that the trial has."""
        running = trial.status == "running"  # the journal is ahead of MLflow: if its run is closed, it is tried again

        def write() -> None:
            if running:
                self._closed.discard(trial.id)
            if trial.id in self._closed:
                return
            own = {"trial_id": trial.id, "trial_number": str(trial.number), PARENT_TAG: self.parent_id, **tags}
            run_id = self._find_or_create("trial_id", trial.id, f"trial {trial.number:03d}", own)
            self._runs[trial.id] = run_id
            self._logged[trial.id] = {metric.step for metric in self.client.get_metric_history(run_id, "gap")}
            self._log_params(run_id, params)

        self._outbox.put(write, trial.id)

    def report(self, trial_id: str, epoch: int, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Log the metrics of an epoch in one request, with further tags; an epoch that MLflow has is left out."""
        now = int(time.time() * 1000)

        def write() -> None:
            from mlflow.entities import Metric, RunTag

            if trial_id in self._closed or epoch in self._logged[trial_id]:
                return
            self.client.log_batch(
                self._runs[trial_id],
                metrics=[Metric(key, float(value), now, epoch) for key, value in names.with_keys(metrics).items()],
                tags=[RunTag(key, value) for key, value in names.tags(tags).items()],
            )
            self._logged[trial_id].add(epoch)

        self._outbox.put(write, trial_id)

    def finish_trial(self, trial: TrialHistory, num_ended: int, best: float | None) -> None:
        """Close the run of a trial, and log the best score so far into the parent run.

        A run that lacks a write, which MLflow has refused, is KILLED: a resumed search writes it again.

        Args:
            trial: which has ended.
            num_ended: trials of the search that have ended, the step of the best score.
            best: the best score so far; None where no trial has one.
        """
        now = int(time.time() * 1000)

        def write() -> None:
            if trial.id in self._closed:
                return
            run_id = self._runs[trial.id]
            for key, value in names.tags(outcome_tags(trial)).items():
                self.client.set_tag(run_id, key, value)
            if trial.error is None and "error" in self.client.get_run(run_id).data.tags:
                self.client.delete_tag(run_id, "error")  # of the attempt before `--retry-failed`
            status = "FAILED" if trial.status == "failed" else "FINISHED"
            self.client.set_terminated(run_id, "KILLED" if trial.id in self._outbox.lacking else status)
            if best is not None:
                self.client.log_metric(self.parent_id, "gap_best", best, now, num_ended)
            del self._runs[trial.id]

        self._outbox.put(write, trial.id)

    def suspend_trials(self) -> None:
        """Close the runs of the trials that have not ended; a resumed search opens them again."""

        def write() -> None:
            for run in self._children(self.parent_id):
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
        """Log the scores of the best trial on whole splits into the parent run, and its model.

        Args:
            metrics: by key, such as `best/validate/gap`.
            tags: of the parent run.
            log_model: `log_model(run_id, tracking_uri)`, which is called on the writing thread.
            tables: artifacts of the parent run: the text of a csv, by file name.
        """

        def write() -> None:
            from mlflow.entities import Metric, RunTag

            now = int(time.time() * 1000)
            self.client.log_batch(
                self.parent_id,
                metrics=[Metric(key, float(value), now, 0) for key, value in names.with_keys(metrics).items()],
                tags=[RunTag(key, value) for key, value in names.tags(tags).items()],
            )
            for name, text in (tables or {}).items():
                self.client.log_text(self.parent_id, text, name)
            log_model(self.parent_id, self.uri)

        self._outbox.put(write)

    def end_search(self, status: str) -> None:
        """Close the parent run as FINISHED, FAILED or, where a resume can continue it, KILLED."""

        def write() -> None:
            complete = not (self._outbox.undelivered or self._outbox.lacking)
            self.client.set_terminated(self.parent_id, status if complete else "KILLED")

        self._outbox.put_last(write)

    def close(self, patience: float | None = None, print_line: Callable[[str], None] = print) -> int:
        """Write what is left and stop the thread.

        Args:
            patience: seconds to wait for a server that is away; None: `outbox.PATIENCE_SECONDS`.
            print_line: prints a line where there is something to wait for.

        Returns:
            How many writes the server did not get, because it stayed away.
        """
        return self._outbox.close(outbox.PATIENCE_SECONDS if patience is None else patience, print_line)

    @property
    def refused(self) -> list[str]:
        """The errors of the writes that MLflow refused for good."""
        return self._outbox.refused

    def _answers(self) -> bool:
        try:
            return bool(self.client.get_experiment(self.experiment_id))
        except Exception:  # any error means that it does not answer now
            return False

    def _restore(self) -> bool:
        """Restore what somebody has deleted of the experiment and the open runs; returns whether there was anything."""
        runs = [self.parent_id, *self._runs.values()] if self.parent_id else []
        restored = deleted.restore(self.client, self.experiment_id, runs)
        if restored:
            self._tell_restored(restored)
        return bool(restored)

    def _tell_restored(self, what: str) -> None:
        self._print_line(f"MLflow at {redacted(self.uri)}: {what} had been deleted, and is restored for this search")

    def _find_or_create(self, tag: str, value: str, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.entities import ViewType

        runs = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'", ViewType.ALL)
        found = [run for run in runs if tag == "trial_id" or PARENT_TAG not in run.data.tags]
        if found:
            run_id: str = found[0].info.run_id
            if deleted.restore_run(self.client, found[0]):
                self._tell_restored(f"the run '{name}'")
            self.client.set_terminated(run_id, "RUNNING")
            if tags.get(PARENT_TAG, "") != found[0].data.tags.get(PARENT_TAG, ""):
                self.client.set_tag(run_id, PARENT_TAG, tags[PARENT_TAG])  # its parent run is gone for good
            return run_id
        run = self.client.create_run(self.experiment_id, run_name=name, tags=names.tags({**self._tags, **tags}))
        return str(run.info.run_id)

    def _children(self, parent_id: str) -> list[Any]:
        query = f"tags.`{PARENT_TAG}` = '{parent_id}'"
        runs: list[Any] = []
        token: str | None = None  # of the next page; "" after the last page
        while token != "":
            page = self.client.search_runs([self.experiment_id], query, max_results=MAX_RUNS, page_token=token)
            runs, token = runs + list(page), page.token or ""
        return runs

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow refuses to change a parameter, such as the number of trials of a search that was extended.
        known = self.client.get_run(run_id).data.params
        for new in names.params(params, known):
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in new.items()])


def _is_transient(error: Exception) -> bool:
    """Whether the same write may succeed later: the server is away or the database is locked, but it did not refuse."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in TRANSIENT
    # Of the library requests, which uploads artifacts; a full disk may have room again.
    return may_pass(error) or (isinstance(error, OSError) and getattr(error, "response", None) is None)


def _unreachable(uri: str, error: Exception) -> str:
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = "; for PostgreSQL: pip install 'video-tuner[postgresql]'"
    return f"MLflow at {redacted(uri)}: {redacted(first_line(error))}{hint}"


def trial_of_run(run_id: str, uri: str) -> str | None:
    """The trial_id of an MLflow run; None where no such run exists, or it is not the run of a trial.

    Raises:
        SearchError: MLflow cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None  # MLflow would create the database
    try:
        tags: dict[str, str] = mlflow.MlflowClient(tracking_uri=configure_client(uri)).get_run(run_id).data.tags
    except MlflowException as error:
        if _is_transient(error):
            raise SearchError(_unreachable(uri, error)) from None
        return None
    return tags.get("trial_id")
