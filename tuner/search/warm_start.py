"""A search that begins with what earlier ones know (`search.warm_start`): what they teach, what need not be trained.

Trials of the same data and the same fixed settings have scores that compare: they teach the sampler, wherever they were
drawn, if their settings lie in the space. Of these, the best one, and each that a planned configuration would repeat,
become trials of the new search with the results, and the weights, that they have. Of other data the scores do not
compare: the best configurations are tried first.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tuner.config.experiment import Experiment
from tuner.errors import ConfigError, NothingToExport, SearchError
from tuner.export import checkpoints
from tuner.search.sampling.suggestions import Configuration, configuration
from tuner.storage import journal, searches
from tuner.storage.journal import Journal, SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.training.config import flatten
from tuner.training.dataset import Dataset

# So many configurations of a search on other data are tried first, and at most a quarter of the trials.
FIRST = 5
# Reasons why trials do not teach, in a sentence.
REASONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An earlier search, as the new one sees it."""

    directory: Place
    search: SearchHistory
    comparable: bool  # whether its scores are of the same data
    # Trials whose settings are in the new space, best first, with their values in it. Those that failed come last.
    usable: list[tuple[TrialHistory, dict[str, Any]]]
    refused: Counter[str] = field(default_factory=Counter)  # why others are not used

    @classmethod
    def read(cls, directory: Place, experiment: Experiment, data: Dataset) -> "Earlier":
        """Read an earlier search.

        Raises:
            ConfigError: its experiment is of a version that this one cannot read.
            SearchError: its journal is damaged.
        """
        search, stored = journal.read(directory), Experiment.stored(directory, directory.parent.name)
        sample = stored.data.validate_fraction == experiment.data.validate_fraction
        earlier = cls(
            directory=directory,
            search=search,
            comparable=sample and search.fingerprint == data.fingerprint,
            usable=[],
        )
        for trial in [*search.finished, *(trial for trial in search.failed if trial.failed_by_settings)]:
            try:
                settings = flatten(stored.space.resolve(trial.values))
                values = experiment.space.complete(settings)
                experiment.trial_config(values)
                earlier.usable.append((trial, values))
            except ConfigError as error:
                earlier.refused[str(error).split(" (got ")[0]] += 1
        return earlier

    def describe(self) -> str:
        """What the search gives, in a sentence."""
        known = len(self.usable) + self.refused.total()
        of = f"search {self.search.id} of {self.search.experiment}"
        teach = "teach the sampler" if self.comparable else "have settings that can be tried"
        others = ""
        if not self.comparable:
            others = "; it had other data, so its scores do not compare, and its best configurations are tried first"
        if self.refused:
            reasons = [f"{reason} ({count})" for reason, count in self.refused.most_common(REASONS)]
            more = "; and others" if len(self.refused) > REASONS else ""
            others += f". Not used: {'; '.join(reasons)}{more}"
        return f"warm start: {len(self.usable)} of {known} trials of {of} {teach}{others}"


@dataclass(frozen=True, slots=True)
class Known:
    """A trial of an earlier search, whose result need not be computed again."""

    earlier: Earlier
    trial: TrialHistory
    values: dict[str, Any]  # in the new space


def find(names: Sequence[str], storage: Place) -> list[Place]:
    """The folders of the searches that `search.warm_start` names: by id, or by experiment, which means all of its own.

    Raises:
        SearchError: the storage has no such search.
    """
    found: dict[Place, None] = {}
    for name in names:
        named = [searches.find(storage, None, name)] if searches.is_id(name) else searches.of(storage, name)
        found |= dict.fromkeys(named)
    return list(found)


def begin(open_journal: Journal, experiment: Experiment, data: Dataset, directories: Sequence[Place]) -> list[str]:
    """Write what earlier searches know into the journal of a new one, before its first trial, as one entry.

    Returns:
        A sentence for the user about each earlier search, and one about the results that are taken.
    """
    every, sentences = [], []
    for directory in directories:
        if directory == open_journal.directory:
            continue
        try:
            every.append(Earlier.read(directory, experiment, data))
            sentences.append(every[-1].describe())
        except (ConfigError, SearchError) as error:
            sentences.append(f"warm start: search {directory.name} is left out: {error}")
    known: dict[Configuration, Known] = {}
    for earlier in every:
        if earlier.comparable:
            for trial, values in earlier.usable:
                known.setdefault(configuration(experiment, values, trial.number), Known(earlier, trial, values))
    taken = _taken(experiment, known)
    entries = [
        entry
        for number, (values, one) in enumerate(taken)
        for entry in _ended(open_journal, experiment, number, values, one)
    ]
    for earlier in every:
        teach = [
            {"number": one.trial.number, "values": one.values, "score": one.trial.score}
            for one in known.values()
            if one.earlier is earlier and not any(one is other for _, other in taken)
        ]
        entries.append({"type": "taught", "search": earlier.search.id, "trials": teach})
        if not earlier.comparable:
            first = [values for trial, values in earlier.usable if trial.score is not None]
            most = min(FIRST, experiment.search.trials // 4)
            entries += [{"type": "queued", "values": values} for values in first[:most]]
    open_journal.append("warm_start", entries=entries)
    results = [values for values, one in taken if one is not None]
    if results:
        sentences.append(f"warm start: results that are known, and not trained again: {len(results)}")
    return sentences


def _taken(experiment: Experiment, known: Mapping[Configuration, Known]) -> list[tuple[dict[str, Any], Known | None]]:
    """The first trials of the new search and what is known of each: the defaults, planned ones, the best known one."""
    scored = [one for one in known.values() if one.trial.score is not None]
    best = [min(scored, key=lambda one: one.trial.rank).values] if scored else []
    taken: list[tuple[dict[str, Any], Known | None]] = []
    for values in [*experiment.planned, *best]:
        one = known.get(configuration(experiment, values, len(taken)))
        if not taken or (one is not None and all(one is not other for _, other in taken)):
            taken.append((values, one))
    return taken


def _ended(
    open_journal: Journal, experiment: Experiment, number: int, values: Mapping[str, Any], one: Known | None
) -> Iterator[dict[str, Any]]:
    """The entries of a trial; where its result is known, it has ended with it, and has its weights if they are kept."""
    assert open_journal.search is not None
    id = searches.trial_id(open_journal.search.id, number)
    origin = {"search": one.earlier.search.id, "trial": one.trial.id} if one else None
    yield {
        "type": "suggested",
        "number": number,
        "id": id,
        "values": values,
        "settings": experiment.space.settings(values),
        "known": origin,
        "sampler_state": {},
        "study_state": {},
    }
    if one is None:
        return
    for epoch, metrics in one.trial.reports.items():
        yield {"type": "report", "id": id, "epoch": epoch, "metrics": metrics}
    if one.trial.status == "failed":
        yield {"type": "failed", "id": id, "error": one.trial.error, "cause": one.trial.cause}
        return
    with suppress(NothingToExport):  # it was not among the best, whose weights are kept
        checkpoints.copy_best(one.earlier.directory, one.trial, open_journal.directory, id)
    yield {"type": "finished", "id": id, "stopped_by": one.trial.stopped_by}
