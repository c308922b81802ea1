"""What a search begins with: a new folder and journal, or those of the newest search of the experiment."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from data.batches import Batches
from models.inputs import rated_counts
from models.metrics import Accumulator
from tuner.config.experiment import STORED, Experiment, load
from tuner.console import Console
from tuner.errors import ConfigError, SearchError
from tuner.export import checkpoints
from tuner.redact import redacted
from tuner.search import warm_start
from tuner.search.summary import resume_command
from tuner.storage import journal, searches
from tuner.storage.journal import Journal, SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.training.dataset import Dataset
from tuner.training.evaluation import batch_size_of

# What ended a search of which nothing is left to do.
WHOLE = ("planned", "exhausted", "goal", "plateau")
# What ends a search whichever trials remain: a retry changes neither its scores nor the time that it has used.
ENDED_BY_RULE = ("goal", "plateau", "time_budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a search is run; what it searches is in the experiment."""

    storage: Place
    tracking_uri: str | None = None  # None: tuner.tracking.uri.choose_uri decides
    overrides: tuple[str, ...] = ()  # `path=value` settings of the command line
    address: str | None = None  # None: tuner.workers.connection.resolve_address decides
    resume: bool = False
    extend: int = 0  # further trials for a search
    retry_failed: bool = False  # try the failed trials of a search again
    search: str | None = None  # the id of the search to continue; None: `tuner.storage.searches` chooses
    fresh: bool = False  # begin a new search, and do not mention those that have not ended

    @property
    def continues(self) -> bool:
        """Whether a search is continued, and no new one begins."""
        return self.resume or self.extend > 0 or self.retry_failed

    @property
    def looks_back(self) -> bool:
        """Whether earlier searches of the experiment are mentioned, and known results shown."""
        return not (self.continues or self.fresh)


def folder_and_experiment(file: Path, name: str | None, options: Options) -> tuple[Place, Experiment]:
    """The folder of the search, and the experiment: of a resumed search, the one that was stored when it began.

    Raises:
        ConfigError: the file is wrong, or its experiment has changed since the search to resume began.
        SearchError: there is no search to resume, or it has ended, or it has no trial to retry.
    """
    if not options.continues:
        experiment = load(file, name, options.overrides)
        return options.storage / experiment.name / searches.new_id(options.storage), experiment
    if options.search:
        directory = searches.find(options.storage, name, options.search)
        name = directory.parent.name
    else:
        name = load(file, name, options.overrides).name
        directory = searches.to_continue(options.storage, name, unfinished=options.resume)
    search = journal.read(directory)
    if options.retry_failed:
        _check_retry(search)
    elif search.ended and search.tracked and not (options.extend or options.tracking_uri):
        raise SearchError(
            f"search {directory.name} has ended ({search.ended}) with {len(search.finished)} finished trials; "
            "--extend N adds trials to it, --tracking-uri URI writes it to another MLflow"
        )
    stored = Experiment.stored(directory, name, file)
    today = load(file, name, options.overrides or search.overrides)
    changed = stored.differences(today)
    if changed:
        raise ConfigError(
            f"{file} has changed since search {directory.name} began:\n  "
            + "\n  ".join(changed)
            + "\nchange it back to resume the search (--extend N adds trials), "
            "or use --fresh instead of --resume to start a new one"
        )
    return directory, stored


def _check_retry(search: SearchHistory) -> None:
    """Check that failed trials can be tried again.

    Raises:
        SearchError: no trial has failed; or the rule that has ended the search would end them at once, without a score.
    """
    if not search.failed:
        then = "" if search.ended else f"; {resume_command(search)} continues the search"
        raise SearchError(f"--retry-failed: no trial of search {search.id} has failed{then}")
    if search.ended in ENDED_BY_RULE:
        raise SearchError(
            f"--retry-failed: search {search.id} has ended ({search.ended}), and search.{search.ended} would end its "
            "failed trials again at once; start a new search without that limit (--warm-start takes over what is known)"
        )


Recent = list[tuple[Place, SearchHistory]]  # folders and searches, newest first


def recent(storage: Place, name: str) -> Recent:
    """The newest searches of an experiment."""
    found: Recent = []
    for directory in reversed(searches.folders(storage, name)[-searches.MAX_LISTED :]):
        with suppress(SearchError):  # a journal that cannot be read, of another version for example, cannot be resumed
            found.append((directory, journal.read(directory)))
    return found


def unfinished(found: Recent) -> list[SearchHistory]:
    """The searches that have not ended.

    While this process holds the lock of the experiment, their drivers were interrupted or killed.
    """
    return [search for _, search in found if not search.ended]


def unchanged(found: Recent, experiment: Experiment, fingerprint: str, uri: str) -> Place | None:
    """The folder of the newest search that has run this experiment to its end; run again, it would find the same.

    Args:
        found: the newest searches of the experiment.
        experiment: what is searched.
        fingerprint: of the data.
        uri: of MLflow.

    Returns:
        None: no search has run it with the same settings on the same data, or into another MLflow.
    """
    for directory, search in found:
        whole = search.ended in WHOLE and bool(search.finished)
        if not whole or (search.fingerprint, search.tracking_uri) != (fingerprint, redacted(uri)):
            continue
        with suppress(ConfigError):  # one of another version is not the same
            if not Experiment.stored(directory, experiment.name, experiment.file).differences(experiment):
                return directory
    return None


def mention(interrupted: Iterable[SearchHistory], console: Console) -> None:
    """Print which searches could be resumed, because a new one may not be what the user wants."""
    for search in interrupted:
        console.print(
            f"search {search.id} of {search.experiment} has not ended ({len(search.finished)} of {search.planned} "
            f"trials); {resume_command(search)} continues it, and this is a new search"
        )


def begin(
    open_journal: Journal,
    experiment: Experiment,
    options: Options,
    uri: str,
    data: Dataset,
    print_line: Callable[[str], None] = lambda line: None,
) -> SearchHistory:
    """Write the first entries of a search's journal; of a resumed search, check that its data is unchanged.

    Args:
        open_journal: the journal of the search, open.
        experiment: what is searched.
        options: of this driver.
        uri: of MLflow.
        data: the training and validation videos.
        print_line: prints what earlier searches give (`search.warm_start`).

    Raises:
        SearchError: the data has changed since the search began, or an earlier search cannot be read.
        ConfigError: a grid is to be extended.
    """
    search = open_journal.search
    if search is None:
        (open_journal.directory / STORED).write_text(experiment.to_yaml(), encoding="utf-8")
        checkpoints.keep_statistics(open_journal.directory, data.statistics)
        open_journal.append(
            "search",
            version=journal.VERSION,
            id=open_journal.directory.name,
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
    if experiment.search.warm_start and not (search and search.warmed):
        directories = warm_start.find(experiment.search.warm_start, options.storage)
        for sentence in warm_start.begin(open_journal, experiment, data, directories):
            print_line(sentence)
    if options.extend:
        if experiment.search.sampler.kind == "grid":
            raise ConfigError("--extend: a grid has no further trials, all of its combinations are in the search")
        open_journal.append("extended", trials=options.extend)
    assert open_journal.search is not None
    if options.retry_failed:
        failed = open_journal.search.failed
        again = [
            f"  trial {trial.number:03d} {_from_where(trial)}; it had failed with: {trial.error}" for trial in failed
        ]
        open_journal.append("retried", ids=[trial.id for trial in failed])
        print_line(f"failed trials that are tried again: {len(failed)}")
        for sentence in again:
            print_line(sentence)
    return open_journal.search


def _from_where(trial: TrialHistory) -> str:
    if trial.failed_by_settings:
        return "begins anew"
    return "continues from its last checkpoint, or begins anew where it has none"


def frequency_baseline(batches: Batches, data: Dataset) -> float:
    """GAP of a prediction that gives every video the frequencies of the labels; a useful model has more.

    The frequency of a class is that among the videos for which the class is rated.

    Args:
        batches: of the validation videos.
        data: its statistics are those of the training videos.
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
