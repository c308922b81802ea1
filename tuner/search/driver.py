"""A search from beginning to end, on the driver. A new, a resumed and an extended search take the same steps.

    open the journal -> open the data -> MLflow beside Ray -> Tuner.fit -> score the best trial -> MLflow -> summary

Everything that a trial does arrives in `Recorder`, a callback of Tune: it writes the journal first, then MLflow,
then the screen.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import ray
import ray.tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, TuneError, Tuner

from data.cache.store import Cache
from data.errors import DataError, UnreachableError
from data.retry import notices
from tuner.cluster import nodes, shared_storage
from tuner.cluster.heartbeat import watch
from tuner.cluster.resources import Node, Plan, describe, plan
from tuner.config import preflight
from tuner.config.experiment import Experiment
from tuner.config.notes import notes
from tuner.console import Console, describe_seconds, quiet
from tuner.errors import SearchError, TunerError
from tuner.export.pruning import remove_needless
from tuner.inference.best_trial import score_best
from tuner.project import PROJECT, program, tune_again
from tuner.redact import redacted
from tuner.search import stages, warm_start
from tuner.search.begin import Options, Recent, begin, folder_and_experiment, mention, recent, unchanged, unfinished
from tuner.search.concurrency import Concurrency
from tuner.search.recorder import Recorder
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.searcher import JournaledSearch
from tuner.search.steering.steering import Steering
from tuner.search.stopper import StopRule, sigterm_as_interrupt
from tuner.search.summary import conclude_tracking, interrupted, print_summary
from tuner.search.winner import conclude
from tuner.storage import journal, lock, searches
from tuner.storage.journal import Journal, SearchHistory
from tuner.storage.place import Place, is_url
from tuner.storage.stores import at
from tuner.tracking.records import search_params, search_tags
from tuner.tracking.registry import warm_up
from tuner.tracking.tags import environment_tags
from tuner.tracking.tracker import SHORT_PATIENCE_SECONDS, Tracker
from tuner.tracking.uri import choose_uri, ui_command
from tuner.training.contrastive import encoder_store
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.state import SCORE
from tuner.workers import connection
from tuner.workers.slot import slot
from tuner.workers.train_run import ray_storage

# In the search's folder: everything that Ray, its workers and MLflow print.
LOG = "ray.log"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a search ended for its driver."""

    code: int  # the exit code of tune.py, as `tuner.search.summary.print_summary` returns it
    directory: Place  # of the search


def run(file: Path, name: str | None, options: Options, console: Console) -> Outcome:
    """Run, resume or extend a search of an experiment.

    Args:
        file: experiments.yaml.
        name: of the experiment; None: the file's default.
        options: how the search is run.
        console: prints the search.

    Raises:
        ConfigError: the file is wrong, has changed since the search to resume began, or asks for more than the cluster
            can hold.
        SearchError: there is no search to resume, another driver runs the experiment in this storage, or Ray or MLflow
            cannot be reached.
        DataError: the shards are missing or damaged.
    """
    with console.reminding(), notices(console.print):
        return _locked(file, name, options, console)


def _locked(file: Path, name: str | None, options: Options, console: Console) -> Outcome:
    stages.begin("experiment")
    console.doing("reading the experiment", aloud=False)
    directory, experiment = folder_and_experiment(file, name, options)
    if not options.continues:
        warm_start.find(experiment.search.warm_start, options.storage)  # refuses what is not there
    # An object store has no locks: a driver that was killed holds its lease for a minute.
    console.doing(f"taking the lock of {directory.parent}", aloud=False)
    with sigterm_as_interrupt(), lock.only_driver(directory.parent, directory.name) as still_ours:
        before = recent(options.storage, experiment.name)
        if options.looks_back:
            mention(unfinished(before), console)
        try:
            return _run(directory, experiment, options, console, still_ours, before)
        except UnreachableError:
            raise  # nor can the folder of the search be asked or removed
        except (TunerError, DataError, KeyboardInterrupt) as error:
            if not searches.exists(directory):
                at(directory).remove()  # the search has not begun
            elif isinstance(error, KeyboardInterrupt):  # a second signal, or one that came outside of Tune's fit
                console.print("\n" + interrupted(journal.read(directory)))
                return Outcome(130, directory)
            raise


def _run(
    directory: Place,
    experiment: Experiment,
    options: Options,
    console: Console,
    still_ours: Callable[[], None],
    before: Recent,
) -> Outcome:
    """Run the search; `before` are the newest searches of the experiment, whose drivers may have left something."""
    earlier = journal.read(directory) if searches.exists(directory) else None
    uri = choose_uri(options.tracking_uri, earlier.tracking_uri if earlier else None, experiment.file.parent)
    # What a search began with was checked then; its shards may be gone.
    overlaps = [] if earlier else preflight.check_files(experiment)
    stages.begin("data")
    console.doing("opening the data")
    with console.decoding() as progress, preflight.naming_settings(experiment):
        data = open_dataset(experiment.data, progress, fingerprint=earlier.fingerprint if earlier else None)
    if options.looks_back and (known := unchanged(before, experiment, data.fingerprint, uri)) is not None:
        return _told_again(known, experiment, data, console)
    if not earlier:
        overlaps += preflight.check_data(experiment, data)
    labelled = data.statistics.label_counts_C.nonzero()
    for sentence in overlaps + notes(experiment, data.statistics.num_videos, int(labelled.max())):
        console.print(sentence)
    for split, cache in (("train", data.train), ("validate", data.validate)):
        for sentence in cache.remarks():
            console.print(f"data.{split}: {sentence}")
    with at(directory / LOG).buffered() as log, quiet(log), stages.reported(), ThreadPoolExecutor(1) as background:
        stages.begin("ray")
        console.doing("starting Ray and connecting to MLflow")
        # A new database of MLflow takes as long as a Ray.
        connecting = background.submit(lambda: Tracker(uri, experiment.name, environment_tags(PROJECT), console.print))
        with connection.connect(connection.resolve_address(options.address), console.print) as attempt:
            stages.begin("mlflow")
            console.doing(f"connecting to MLflow at {redacted(uri)}", aloud=False)
            tracker = connecting.result()
            tracker.suspend_searches([one.id for one in unfinished(before)])
            background.submit(warm_up)
            stages.begin("journal")
            console.doing("looking at the nodes of the cluster and at the storage", aloud=False)
            shared_storage.check_shared(directory)
            private = attempt.scratch is not None
            capacity = partial(nodes.capacity, experiment.resources.startable, private=private)
            layout = plan(experiment.resources, capacity())
            if private:  # the workers of a cluster have machines of their own, and check there
                num_videos = data.statistics.num_videos
                preflight.check_memory(experiment, gpu=layout.resources.gpu > 0, num_videos=num_videos)
                if data.train.stream is not None:
                    of_video = data.train.stream.video_bytes
                    preflight.check_buffer(experiment, num_videos=num_videos, video_bytes=of_video)
            with closing(Journal(directory, still_ours)) as open_journal:
                search = begin(open_journal, experiment, options, uri, data, console.print)
                connection.clean_up([made for one in (search, *unfinished(before)) for made in one.attempts], attempt)
                open_journal.append("attempt", tracking_uri=redacted(uri), **asdict(attempt))
                code = _Search(experiment, open_journal, tracker, data, layout, capacity, console, log).run()
                return Outcome(code, directory)


def _told_again(directory: Place, experiment: Experiment, data: Dataset, console: Console) -> Outcome:
    """Print the results of a search that has run exactly this."""
    search = journal.read(directory)
    console.print(
        f"search {search.id} has run exactly this experiment on this data, so its results are shown; "
        f"{tune_again(experiment.name, '--fresh')} trains again, --extend N adds trials to it"
    )
    return Outcome(print_summary(search, StopRule(experiment, search), experiment, data, console), directory)


class _Search:
    """The part of a search that one driver runs."""

    def __init__(
        self,
        experiment: Experiment,
        journal: Journal,
        tracker: Tracker,
        data: Dataset,
        layout: Plan,
        capacity: Callable[[], list[Node]],
        console: Console,
        log: Path,
    ) -> None:
        assert journal.search is not None
        self.experiment, self.journal, self.data, self.layout, self.console = experiment, journal, data, layout, console
        self.search: SearchHistory = journal.search
        self.tracker, self.directory = tracker, journal.directory
        self.log = log
        settings = experiment.search
        limit = None if settings.max_concurrent == "auto" else settings.max_concurrent
        self.concurrency = Concurrency(layout, limit, capacity, console.print)
        self.stop = StopRule(experiment, self.search)

    def run(self) -> int:
        """Train the trials that remain, then score the best one."""
        console, search, settings, tracker = self.console, self.search, self.experiment.search, self.tracker
        results = ui_command(program("mlflow"), search.tracking_uri)
        stored = f", at the end {self.directory / LOG}" if is_url(self.directory) else ""
        console.print(
            f"search {search.id} of {search.experiment}: {self._due} of {search.planned} trials to run, "
            f"{describe(self.layout)}; Ray's own log: {self.log}{stored}"
        )
        if self.stop.is_out_of_time and self._due:
            console.print(
                f"search.time_budget ({describe_seconds(settings.time_budget or 0)}) is used up: the search has run "
                f"for {describe_seconds(search.seconds)}, so no trial is trained any further"
            )
        status = "KILLED"  # until the search has ended: a resume continues it
        try:
            tracker.start_search(
                search.id,
                tags=search_tags(search),
                params=search_params(search, sampler=settings.sampler.kind, scheduler=settings.scheduler.kind),
                yaml=self.experiment.to_yaml(),
            )
            for split, cache in (("train", self.data.train), ("validate", self.data.validate)):
                _log_data(tracker, split, cache, getattr(self.experiment.data, split))
            scheduler = ReplayingScheduler(settings.scheduler, search, self.experiment.max_epochs)
            recorder = Recorder(self.experiment, self.journal, tracker, console, scheduler, self.stop)
            head = ray.get_runtime_context().gcs_address
            with console.searching(search, results), watch(head, partial(self._exit_without_ray, head), console.print):
                steering = Steering(self.experiment, self.journal, self.stop, recorder, console.print)
                recorder.catch_up()
                if self._due and not self.stop.stop_all():
                    stages.begin("trials")
                    console.doing("")
                    with steering.listening():
                        self._fit(scheduler, recorder, steering)
                    recorder.end_stopped()
                if not self.stop.interrupted:
                    stages.begin("the winner")
                    console.doing("scoring the best trial and writing its model to MLflow", aloud=False)
                    if search.finished:
                        if self._slots_score_better and not search.best_is_scored:
                            self.stop.trains = False
                            self._fit(scheduler, recorder, steering)
                        conclude(self.journal, self.experiment, self.data, tracker, console)
                    remove_needless(self.directory, search, settings.keep, print)
                    if not search.ended:
                        self.journal.append("ended", reason=self.stop.ended_by or "planned")
                    status = "FINISHED" if search.finished else "FAILED"
        finally:
            stages.begin("last writes to mlflow")
            console.doing("")  # the outbox says what it waits for
            if self._is_ours:
                tracker.suspend_trials()
                tracker.end_search(status)
            undelivered = tracker.close(SHORT_PATIENCE_SECONDS if status == "KILLED" else None, console.print)
        conclude_tracking(self.journal, tracker.refused, undelivered, self.log, console)
        stages.begin("closing")
        console.doing("ending Ray", aloud=False)
        return print_summary(search, self.stop, self.experiment, self.data, console)

    @property
    def _is_ours(self) -> bool:
        """Whether no other driver has taken over the search, and with it the runs in MLflow."""
        try:
            self.journal.still_ours()
        except SearchError:
            return False
        except (TunerError, DataError):  # the store is away; nobody else can have it either
            return True
        return True

    @property
    def _due(self) -> int:
        """How many trials remain to be run; a search that has ended is resumed only to write to MLflow."""
        search = self.search
        return 0 if search.ended else search.planned - len(search.trials) + len(search.unfinished)

    @property
    def _slots_score_better(self) -> bool:
        """Whether it is worth a new slot to score the best trial: it has a GPU, or other CPUs than the driver."""
        return self.layout.resources.gpu > 0 or self.search.attempts[-1].scratch is None

    def _exit_without_ray(self, head: str) -> None:
        """End this process because its Ray is gone; the main thread would wait forever for an answer of Ray."""
        self.console.print(f"\nno Ray answers at {head} any more\n" + interrupted(self.search))
        self.tracker.suspend_trials()
        self.tracker.end_search("KILLED")
        self.tracker.close(SHORT_PATIENCE_SECONDS, self.console.print)
        os._exit(1)

    def _fit(self, scheduler: ReplayingScheduler, recorder: Recorder, steering: Steering) -> None:
        """Run the trials with Ray Tune."""
        layout = self.layout
        at(self.directory / searches.TRIALS).make()
        connection.start_together(layout.slots)
        encoders = self.directory.parent.parent / encoder_store.FOLDER
        slots = slot(self.experiment, self.directory, encoders, layout.resources, self.search.fingerprint, score_best)
        tuner = Tuner(
            slots,
            tune_config=TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=-1,  # the searcher returns FINISHED after all planned trials
                search_alg=JournaledSearch(self.experiment, self.journal, self.concurrency, self.stop, steering.poll),
                scheduler=scheduler,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=f"attempt-{len(self.search.attempts)}",
                **ray_storage(self.directory / searches.RAY),
                callbacks=[recorder, steering],
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),  # the workers store their checkpoints
                stop=self.stop,
                verbose=0,
            ),
        )
        with self.stop.signals():
            try:
                tuner.fit()
            except TuneError:
                self.journal.still_ours()  # raises a clear error where another driver has taken over
                raise
        if self.stop.fatal_error is None:  # it may be the storage that failed
            at(self.directory / searches.RAY).remove()  # Tune's snapshots are not needed, the journal has everything


def _log_data(tracker: Tracker, split: str, cache: Cache, source: object) -> None:
    tracker.log_data(
        name=split,
        fingerprint=cache.fingerprint,
        source=str(source),
        num_videos=cache.num_videos,
        schema=", ".join(f"{feature}: {width}" for feature, width in cache.schema.features.items()),
    )
