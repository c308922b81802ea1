"""A search from start to end, on the driver: new, resumed or extended, it is the same way through.

    open the journal -> open the data -> MLflow -> Ray -> Tuner.fit -> score the winner -> MLflow -> say what came out

Everything that a trial does comes back through `Recorder`, the one Tune callback: journal first, then MLflow, then the
screen.
"""

import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch
from ray.tune import RunConfig, TuneConfig, TuneError, Tuner

from data.batches import Batches
from data.cache.store import Cache
from data.errors import DataError
from models.inputs import rated_counts
from models.metrics.metrics import Accumulator
from tuner.cluster import nodes, shared_storage
from tuner.cluster.heartbeat import watch
from tuner.cluster.resources import Node, Plan, describe, plan
from tuner.config import experiment as config
from tuner.config.experiment import Experiment
from tuner.console import Console, describe_settings, leader_table, quiet
from tuner.errors import ConfigError, NothingToExport, SearchError, TunerError
from tuner.export import checkpoints
from tuner.inference import scorecard
from tuner.project import PROJECT, program
from tuner.redact import redacted
from tuner.search.concurrency import Concurrency
from tuner.search.recorder import Recorder
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.searcher import JournaledSearch
from tuner.search.stopper import StopRule, sigterm_as_interrupt
from tuner.storage import journal, lock, searches
from tuner.storage.journal import Journal, SearchHistory
from tuner.storage.place import Place, is_url
from tuner.storage.stores import at
from tuner.tracking.records import search_params, search_tags, winner_metrics, winner_tags
from tuner.tracking.registry import register_model
from tuner.tracking.tags import environment_tags
from tuner.tracking.tracker import SHORT_PATIENCE_SECONDS, Tracker
from tuner.tracking.uri import choose_uri, ui_command
from tuner.training.contrastive import encoder_store as encoders
from tuner.training.dataset import Dataset, missing_shards, open_dataset
from tuner.training.evaluation import batch_size_of
from tuner.workers import connection, slots
from tuner.workers.trial import ray_storage, trainable

# Tune wants a request that is not empty for the actor that waits for a trial's worker; it trains nothing itself.
TRIAL_ACTOR = {"memory": 64 * 2**20}
# In the search's folder: all that Ray, its workers and MLflow print.
LOG = "ray.log"
# Trials in the table at the end; `tuner.best --top` shows as many as one likes.
LEADERS = 20
# There too: the winner's scores by class, for each split.
CLASSES = "classes-{}.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a search is run, beside what it searches."""

    storage: Place
    tracking_uri: str | None = None  # None: as tracking.choose_uri settles it
    overrides: tuple[str, ...] = ()  # `path=value` settings of the command line
    address: str | None = None  # None: as connection.resolve_address decides
    resume: bool = False
    extend: int = 0  # further trials for the newest search
    fresh: bool = False  # a new search, whatever has become of the newest one


def run(file: Path, name: str | None, options: Options, console: Console) -> int:
    """Run, resume or extend a search of an experiment; returns the exit code.

    Raises:
        ConfigError: the file is wrong, has changed since a search began that is to be resumed, or asks for more than
            the cluster can hold.
        SearchError: nothing to resume, another driver is at work on the experiment in this storage, or Ray or MLflow
            cannot be reached.
        DataError: the shards are missing or damaged.
    """
    goes_on = options.resume or options.extend
    if goes_on:
        directory, experiment = _earlier(file, name, options)
    else:
        experiment = config.load(file, name, options.overrides)
        directory = options.storage / experiment.name / searches.new_id(options.storage)
    with sigterm_as_interrupt(), lock.only_driver(directory.parent, directory.name) as still_ours:
        if not (goes_on or options.fresh):
            _tell_of_unfinished(options.storage, experiment.name, console)
        try:
            return _run(directory, experiment, options, console, still_ours)
        except (TunerError, DataError, KeyboardInterrupt) as ended:
            if not searches.exists(directory):
                at(directory).remove()  # it never began
            elif isinstance(ended, KeyboardInterrupt):  # the second one, or one outside of Tune's fit
                console.print("\n" + _interrupted(journal.read(directory)))
                return 130
            raise


def _run(
    directory: Place, experiment: Experiment, options: Options, console: Console, still_ours: Callable[[], None]
) -> int:
    earlier = journal.read(directory) if searches.exists(directory) else None
    uri = choose_uri(options.tracking_uri, earlier.tracking_uri if earlier else None, experiment.file.parent)
    experiment.data.class_names()  # an export needs them, days later
    with console.decoding() as progress:
        data = open_dataset(experiment.data, progress, fingerprint=earlier.fingerprint if earlier else None)
    for name, cache in (("train", data.train), ("validate", data.validate)):
        for path, reason in cache.skipped:
            console.print(f"data.{name}: left out {path}: {reason}")
    with at(directory / LOG).buffered() as log, quiet(log):
        tracker = Tracker(uri, experiment.name, environment_tags(PROJECT))
        with connection.connect(connection.resolve_address(options.address)) as attempt:
            shared_storage.check_shared(directory)
            private = attempt.scratch is not None
            capacity = partial(nodes.capacity, experiment.resources.startable, private=private)
            layout = plan(experiment.resources, capacity())
            with closing(Journal(directory, still_ours)) as record:
                search = _begin(record, experiment, options, uri, data)
                connection.clean_up(search.attempts, attempt)
                record.append("attempt", tracking_uri=redacted(uri), **asdict(attempt))
                return _Search(experiment, record, tracker, data, layout, capacity, console, log).run()


def _earlier(file: Path, name: str | None, options: Options) -> tuple[Place, Experiment]:
    """The newest search of the experiment, and the experiment as it runs it: from the yaml that was stored with it."""
    name = config.load(file, name, options.overrides).name
    known = searches.folders(options.storage, name)
    if not known:
        raise SearchError(f"no search of {name} in {options.storage}: there is nothing to go on with")
    directory = known[-1]
    record = journal.read(directory)
    if record.ended and record.tracked and not options.extend:
        raise SearchError(
            f"search {directory.name} has ended ({record.ended}) with {len(record.finished)} finished trials; "
            "--extend N adds trials to it"
        )
    stored = Experiment.from_yaml((directory / "experiment.yaml").read_text(), name, file)
    today = config.load(file, name, options.overrides or record.overrides)
    changed = stored.differences(today)
    if changed:
        raise ConfigError(
            f"{file} has changed since search {directory.name} began:\n  "
            + "\n  ".join(changed)
            + "\nput these back to go on with it (--extend N adds trials), "
            "or take --fresh in place of --resume to start a new search beside it"
        )
    return directory, stored


def _tell_of_unfinished(storage: Place, name: str, console: Console) -> None:
    """Say that the newest search could go on: a new one beside it may not be what was meant."""
    known = searches.folders(storage, name)
    with suppress(SearchError):  # another version's, say: what cannot be read cannot go on
        if known and not journal.read(known[-1]).ended:
            what = f"search {known[-1].name} of {name} has not ended"
            console.print(f"{what}: --resume goes on with it; this is a new one beside it")


def _begin(record: Journal, experiment: Experiment, options: Options, uri: str, data: Dataset) -> SearchHistory:
    """Write what the search starts with, or check that a resumed one still has its data."""
    search = record.search
    if search is None:
        (record.directory / "experiment.yaml").write_text(experiment.to_yaml())
        checkpoints.keep_statistics(record.directory, data.statistics)
        record.append(
            "search",
            version=journal.VERSION,
            id=record.directory.name,
            experiment=experiment.name,
            overrides=options.overrides,
            fingerprint=data.fingerprint,
            planned=experiment.search.trials,
            tracking_uri=redacted(uri),
            baseline=frequency_baseline(
                data.validate_batches(batch_size_of(data.validate.schema), torch.device("cpu")), data
            ),
        )
    elif search.fingerprint != data.fingerprint:
        raise SearchError(
            f"the data has changed since search {search.id} began ({search.fingerprint} -> {data.fingerprint}), "
            "so new trials could not be compared with its old ones; start a new search"
        )
    if options.extend:
        if experiment.search.sampler.kind == "grid":
            raise ConfigError("--extend: a grid has no further trials, all of its combinations are in the search")
        record.append("extended", trials=options.extend)
    assert record.search is not None
    return record.search


class _Search:
    """One driver's part of a search."""

    def __init__(
        self,
        experiment: Experiment,
        record: Journal,
        tracker: Tracker,
        data: Dataset,
        layout: Plan,
        nodes: Callable[[], list[Node]],
        console: Console,
        log: Path,
    ) -> None:
        assert record.search is not None
        self.experiment, self.journal, self.data, self.layout, self.console = experiment, record, data, layout, console
        self.search: SearchHistory = record.search
        self.tracker, self.directory = tracker, record.directory
        self.log = log
        settings = experiment.search
        most = None if settings.max_concurrent == "auto" else settings.max_concurrent
        self.concurrency = Concurrency(layout, most, settings.overlap, nodes, console.print)
        self.stop = StopRule(experiment, self.search)

    def run(self) -> int:
        """Train what is due, then score the winner."""
        console, search, settings, tracker = self.console, self.search, self.experiment.search, self.tracker
        # One that has ended goes on only to tell MLflow what it has not heard.
        due = 0 if search.ended else search.planned - len(search.trials) + len(search.unfinished)
        stored = f", in the end {self.directory / LOG}" if is_url(self.directory) else ""
        console.print(
            f"search {search.id} of {search.experiment}: {due} of {search.planned} trials to run, "
            f"{describe(self.layout)}; Ray's own log: {self.log}{stored}"
        )
        status = "KILLED"  # whatever ends it before its end: a resume goes on with it
        try:
            tracker.start_search(
                search.id,
                tags=search_tags(search),
                params=search_params(search, sampler=settings.sampler.kind, scheduler=settings.scheduler.kind),
                yaml=self.experiment.to_yaml(),
            )
            for name, cache in (("train", self.data.train), ("validate", self.data.validate)):
                _log_data(tracker, name, cache, getattr(self.experiment.data, name))
            scheduler = ReplayingScheduler(settings.scheduler, search, self.experiment.max_epochs)
            recorder = Recorder(self.experiment, self.journal, tracker, console, scheduler, self.stop)
            recorder.catch_up()
            head = ray.get_runtime_context().gcs_address
            with console.searching(search), watch(head, partial(self._leave, tracker, head)):
                if due:
                    self._fit(scheduler, recorder)
                if not self.stop.interrupted:
                    if search.finished:
                        self._score_winner(tracker)
                    if not search.ended:
                        self.journal.append("ended", reason=self.stop.reason or "planned")
                    status = "FINISHED" if search.finished else "FAILED"
        finally:
            tracker.suspend_trials()
            tracker.end_search(status)
            undelivered = tracker.close(SHORT_PATIENCE_SECONDS if status == "KILLED" else None, console.print)
        self._tell_of_tracking(undelivered)
        return self._conclude()

    def _tell_of_tracking(self, undelivered: int) -> None:
        """Note that MLflow has it all, or say what it has not."""
        console, where, refused = self.console, f"MLflow at {self.search.tracking_uri}", self.tracker.refused
        if refused:
            console.print(f"{where} refused {len(refused)} writes, the first with: {refused[0]}; see {self.log}")
        if undelivered:
            again = f"{program('python')} tune.py {self.search.experiment} --resume"
            console.print(
                f"{where} has not taken {undelivered} writes; the journal has them, and tells them by: {again}"
            )
        elif self.search.ended:
            self.journal.append("tracked")

    def _leave(self, tracker: Tracker, head: str) -> None:
        """End this process because its Ray is gone: whatever waits for an answer of it waits for ever."""
        self.console.print(f"\nno Ray answers at {head} any more\n" + _interrupted(self.search))
        tracker.suspend_trials()
        tracker.end_search("KILLED")
        tracker.close(SHORT_PATIENCE_SECONDS, self.console.print)
        os._exit(1)

    def _fit(self, scheduler: ReplayingScheduler, recorder: Recorder) -> None:
        """Hand the search to Tune."""
        settings, layout = self.experiment.search, self.layout
        private = self.search.attempts[-1].scratch is not None  # no other machine will join
        turns = layout.slots if self.concurrency.overlap and layout.one_machine and private else None
        connection.start_together(layout.slots)
        tuner = Tuner(
            ray.tune.with_resources(self._trainable(turns), TRIAL_ACTOR),
            tune_config=TuneConfig(
                metric=settings.metric,
                mode=settings.mode,
                num_samples=-1,  # the searcher knows when the planned trials are out
                search_alg=JournaledSearch(self.experiment, self.journal, self.concurrency, self.stop.halt),
                scheduler=scheduler,
                reuse_actors=False,
            ),
            run_config=RunConfig(
                name=f"attempt-{len(self.search.attempts)}",
                **ray_storage(self.directory / "tune"),
                callbacks=[recorder],
                failure_config=ray.tune.FailureConfig(max_failures=settings.failures.per_trial),
                stop=self.stop,
                verbose=0,
            ),
        )
        with self.stop.signals():
            try:
                tuner.fit()
            except TuneError:
                self.journal.still_ours()  # what stopped it may be another driver that has taken over
                raise
        slots.forget(self.search.id)
        at(self.directory / "tune").remove()  # Tune's snapshots: the journal has it all

    def _trainable(self, turns: int | None) -> Callable[[dict[str, Any]], None]:
        storage = self.directory.parent.parent
        resources, fingerprint = self.layout.resources, self.search.fingerprint
        return trainable(self.experiment, self.directory, storage / encoders.FOLDER, resources, fingerprint, turns)

    def _score_winner(self, tracker: Tracker) -> None:
        """Score the best trial on all of validate (and test), where it is not known yet, and register its model."""
        known, device = self.search.winner or {}, torch.device("cpu")
        for best in self.search.finished:
            try:
                model = checkpoints.load_trial(self.directory, self.experiment, best, device, self.console.print)
                break
            except NothingToExport as error:
                self.console.print(f"{error}; it is not scored on whole splits, the next best trial is")
        else:
            return
        metrics: dict[str, dict[str, float]] = dict(known.get("metrics", {})) if known.get("trial") == best.id else {}
        if not metrics:
            splits = {"validate": self.data.validate}
            if self.experiment.data.test is not None:
                splits["test"] = self.experiment.data.open(self.experiment.data.test)
            class_names = self.experiment.data.class_names()
            precision = self.experiment.trial_config(best.values).training.precision
            for name, cache in splits.items():
                metrics[name], classes = scorecard.score(model, cache, precision, device)
                (self.directory / CLASSES.format(name)).write_text(scorecard.as_csv(classes, class_names))
            self.journal.append("winner", id=best.id, metrics=metrics)
        tables: list[Place] = list(self.directory.glob(CLASSES.format("*")))
        batch = next(Batches(self.data.validate, batch_size=2, shuffle=False).epoch(0))
        frames = self.data.validate.frame_offsets is not None
        example = tuple(tensor.numpy() for tensor in batch.inputs) if frames else batch.features_BD.float().numpy()
        tracker.log_winner(
            metrics=winner_metrics(metrics),
            tags=winner_tags(best),
            tables={table.name: table.read_text() for table in tables},
            log_model=lambda run_id, uri: register_model(
                run_id,
                uri,
                name=self.search.experiment,
                model=model,
                example=example,
                metadata={"search": self.search.id, "trial": best.id, "gap": best.score},
            ),
        )

    def _conclude(self) -> int:
        """The last lines."""
        console, search, name, python = self.console, self.search, self.search.experiment, program("python")
        console.print()
        if self.stop.interrupted:
            obstacle = self.stop.fatal_error
            if obstacle is not None and (missing := missing_shards(self.data)):
                obstacle += f"; missing: {', '.join(missing[:3])}{' and others' if missing[3:] else ''}"
            console.print(_interrupted(search, obstacle or "interrupted"))
            return 130 if obstacle is None else 2
        if not search.finished:
            errors = [trial.error for trial in search.failed]
            console.print(f"no trial finished; {len(errors)} failed, the first with: {errors[0] if errors else '-'}")
            return 1
        best, first = search.finished[0], next(iter(search.trials.values()))
        score = best.score or 0.0
        gain = f", {score - first.score:+.4f} over trial 0 (the defaults)" if first.score is not None else ""
        console.print(f"best trial {best.number:03d}: GAP {score:.4f}{gain}, {_over(score, search.baseline)}")
        console.print("  " + describe_settings(best.settings))
        for split, scores in (search.winner or {}).get("metrics", {}).items():
            console.print(f"  on all of {split}: GAP {scores['gap']:.4f} over {scores['num_videos']:,.0f} videos")
        if self.stop.reason:
            console.print(f"  the search ended early: {self.stop.reason}")
        if search.failed:
            console.print(f"  {len(search.failed)} trials failed, the first with: {search.failed[0].error}")
        console.print()
        console.print(leader_table(search.finished[:LEADERS], self.experiment.space.searched))
        console.print("\nnext:")
        console.print(f"  {python} -m tuner.best {name} --export")
        console.print(f"  {ui_command(program('mlflow'), search.tracking_uri)}")
        return 0


def _interrupted(search: SearchHistory, why: str = "interrupted") -> str:
    return (
        f"{why}: {len(search.finished)} of {search.planned} trials are finished, {len(search.unfinished)} keep "
        f"their last checkpoint\ngo on with: {program('python')} tune.py {search.experiment} --resume"
    )


def frequency_baseline(batches: Batches, data: Dataset) -> float:
    """GAP of giving every video the same scores, the labels' frequencies: what a model must beat to be one.

    The frequency of a class is that among the videos for which it is rated.
    """
    scores_C = (data.statistics.label_counts_C / rated_counts(data.statistics)).float()
    scores = Accumulator(len(scores_C))
    for batch in batches.epoch(0):
        scores.update(
            scores_C.expand(len(batch.rows), -1),
            batch.label_offsets,
            batch.label_indices,
            rated_offsets=batch.rated_offsets,
            rated_indices=batch.rated_indices,
        )
    return scores.compute()["gap"]


def _over(score: float, baseline: float) -> str:
    ratio = f" ({score / baseline:.1f} times)" if baseline else ""
    return f"{score - baseline:+.4f} over ranking by label frequency{ratio}"


def _log_data(tracker: Tracker, name: str, cache: Cache, source: object) -> None:
    tracker.log_data(
        name=name,
        fingerprint=cache.fingerprint,
        source=str(source),
        num_videos=cache.num_videos,
        schema=", ".join(f"{feature}: {width}" for feature, width in cache.schema.features.items()),
    )
