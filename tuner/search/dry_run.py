"""`tune.py --dry-run`: checks what can be wrong before a search starts, and prints what it would try."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from rich.table import Table

from data import machine
from data.cache.recipe import about_empty, find_each, find_shards
from data.cache.store import Cache
from data.frames import decode
from data.tfrecord.shards import DecodedShard
from tuner.cluster import nodes
from tuner.cluster.resources import Node, Plan, describe, plan, threads_of
from tuner.config import preflight
from tuner.config.experiment import Experiment
from tuner.config.notes import notes
from tuner.config.yaml_tree import Problems
from tuner.console import Console, setting_cells, settings_table
from tuner.console.text import describe_seconds
from tuner.search.sampling.samplers import drawn_at_random
from tuner.search.sampling.suggestions import Suggestions
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.training import timing
from tuner.training.config import TrialConfig
from tuner.training.steps import needs
from tuner.workers import connection

# Configurations in the table.
SHOWN = 8


def dry_run(experiment: Experiment, console: Console, address: str | None) -> None:
    """Check the shards and the resources, and print a sample of the trials. Reading the file has checked the rest.

    Args:
        experiment: what would be searched.
        console: prints the result.
        address: of a running Ray; None: tuner.workers.connection.resolve_address decides.

    Raises:
        DataError: a pattern matches no file, or the first shard of a split does not hold what the experiment asks for.
        ConfigError: what `preflight` checks is wrong, or the cluster cannot hold a trial.
        SearchError: no Ray answers at `address`.
    """
    space, config = experiment.space, experiment.search
    console.print(
        f"{experiment.file}: {experiment.name} is valid at all {len(space.corners())} corners of its space, "
        f"{len(space.names())} parameters"
    )
    sentences = preflight.check_files(experiment)
    with preflight.naming_settings(experiment):
        splits = {split: Split.read(experiment, split) for split in preflight.SPLITS if getattr(experiment.data, split)}
    built = {name: split.cache for name, split in splits.items() if split.cache is not None}
    problems = Problems(experiment.name)
    sentences += preflight.check_videos(experiment, built, problems)
    problems.check()
    for name, split in splits.items():
        console.print(f"data.{name}: {split.described}")
        for sentence in split.cache.remarks() if split.cache else about_empty(split.empty, len(split.shards)):
            console.print(f"data.{name}: {sentence}")
    console.print(_kept(experiment, splits))
    num_videos = max(1, round(splits["train"].num_videos * experiment.data.label_fraction))
    for sentence in sentences + notes(experiment, num_videos, splits["train"].largest_label):
        console.print(sentence)
    resolved = connection.resolve_address(address)
    layout = plan(experiment.resources, _nodes(resolved, experiment))
    console.print(describe(layout))
    if resolved == "local":
        preflight.check_memory(experiment, gpu=layout.resources.gpu > 0, num_videos=num_videos)
        train = splits["train"]
        of_video = train.feature_bytes / max(1, train.num_videos)
        preflight.check_buffer(experiment, num_videos=num_videos, video_bytes=of_video)
    for sentence in drawn_at_random(space, config.sampler.kind):
        console.print(sentence)
    budget = f" or {config.time_budget:g} s" if config.time_budget is not None else ""
    budget += f" or a GAP of {config.goal:g}" if config.goal is not None else ""
    console.print(
        f"{config.trials} trials{budget} of at most {experiment.max_epochs} epochs, sampler {config.sampler.kind}, "
        f"scheduler {config.scheduler.kind}"
    )
    combinations = space.num_combinations
    if combinations is not None:
        enough = "; the search ends when all of them have been tried" if combinations < config.trials else ""
        console.print(f"the space has {combinations:,} configurations{enough}")
    if config.warm_start:
        console.print(f"a warm start from {', '.join(config.warm_start)}")
    for sentence in _trial_0(experiment, splits, layout, num_videos):
        console.print(sentence)
    console.print(f"the first {min(SHOWN, config.trials)} trials, if every trial scored alike:")
    console.print(_samples(experiment, min(SHOWN, config.trials)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A split of the data, as far as it is known without decoding it."""

    shards: list[str]
    empty: list[str]  # those of 0 bytes
    first: DecodedShard
    cache: Cache | None  # of the whole split, where this machine has decoded it
    num_videos: int  # of the whole split; estimated by the size of its shards where there is no cache

    @classmethod
    def read(cls, experiment: Experiment, split: str) -> "Split":
        """Find the shards of a split and decode the first one that holds a video."""
        data = experiment.data
        shards = find_shards(getattr(data, split))
        cache = data.built(shards)
        sizes = {shard.path: shard.size for shard in find_each(shards)}
        first = next((path for path in shards if sizes[path]), shards[0])
        decoded = decode(first, data.schema, max_bad_records=data.max_bad_records, dtype=data.dtype)
        estimated = round(len(decoded.ids) * sum(sizes.values()) / max(1, sizes[first]))
        return cls(
            shards=shards,
            empty=[path for path in shards if not sizes[path]],
            first=decoded,
            cache=cache,
            num_videos=estimated if cache is None else cache.num_videos,
        )

    @property
    def feature_bytes(self) -> int:
        """The size of all features as a cache keeps them, estimated by those of the first shard."""
        return round(self.first.features_ND.nbytes * self.num_videos / max(1, len(self.first.ids)))

    @property
    def largest_label(self) -> int | None:
        """The largest label that was read: of the whole split, or of its first shard."""
        labels = self.first.label_indices if self.cache is None else self.cache.label_indices
        return int(labels.max()) if len(labels) else None

    @property
    def described(self) -> str:
        """The number of shards and videos."""
        about = "about " if self.cache is None and len(self.shards) > 1 else ""
        shards = f"{len(self.shards):,} shard{'s' if len(self.shards) > 1 else ''}"
        return f"{shards}, {about}{self.num_videos:,} videos; the first holds {len(self.first.ids):,} valid ones"


def _kept(experiment: Experiment, splits: Mapping[str, Split]) -> str:
    """What data.cache keeps on the disks, and what the other values would."""
    data, workers = experiment.data, experiment.resources.max_workers
    size = sum(split.feature_bytes for name, split in splits.items() if name != "test")
    of_video = size / max(1, sum(split.num_videos for name, split in splits.items() if name != "test"))
    memory = min(2 * data.window * of_video, size)
    takes = {
        "node": f"all features on the disk of each node, about {needs.gibibytes(size)}",
        "share": f"a share for each of {workers} workers, about {needs.gibibytes(size // workers)}",
        "none": f"no features, and takes about {needs.gibibytes(round(memory))} of memory to shuffle {data.window:,} "
        "videos",
    }
    if workers == 1:
        del takes["share"]
    others = "; ".join(f"{mode} would keep {what}" for mode, what in takes.items() if mode != data.cache)
    return f"data.cache: {data.cache} keeps {takes[data.cache]} ({others})"


def _trial_0(experiment: Experiment, splits: Mapping[str, Split], layout: Plan, num_videos: int) -> Iterator[str]:
    """What a trial takes: the size and the memory of the defaults' model, and the time by a few real steps."""
    trial, sizes = experiment.trial_config(experiment.space.defaults()), experiment.data.sizes
    workers = layout.resources.max_workers
    needed = needs.least(trial, sizes, num_videos=num_videos, workers=workers)
    yield f"trial 0 (the defaults): {needs.described(trial, sizes, needed)}"
    device = torch.device("cuda" if layout.resources.gpu else "cpu")
    if not isinstance(trial, TrialConfig) or trial.optimizer is None or workers > 1:
        return  # contrastive, in closed form, or on several machines
    if device.type == "cuda" and not torch.cuda.is_available():
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of(layout.resources.cpu))
    try:
        first = splits["train"].first
        speed = timing.measure(
            trial,
            timing.ShardData(shard=first, schema=experiment.data.schema, vocabulary=experiment.data.vocabulary),
            device,
        )
    finally:
        torch.set_num_threads(threads)
    if speed is None:
        return
    scored = max(1, round(splits["validate"].num_videos * experiment.data.validate_fraction))
    epoch = speed.epoch_seconds(num_videos, scored)
    slots = min(layout.slots, experiment.search.trials)
    limit = experiment.search.max_concurrent
    slots = slots if limit == "auto" else min(slots, limit)
    in_all = epoch * trial.epochs * math.ceil(experiment.search.trials / slots)
    yield (
        f"a few steps here: {speed.train:,.0f} training videos/s, so an epoch takes about {describe_seconds(epoch)}, "
        f"trial 0 about {describe_seconds(epoch * trial.epochs)}, and the search about {describe_seconds(in_all)} if "
        "all trials were like it and none was stopped; decoding comes on top"
    )


def _nodes(address: str, experiment: Experiment) -> list[Node]:
    """The nodes of the cluster; this machine where the search would start a private Ray, which is not started here."""
    if address == "local":
        return [Node(cpus=machine.cpus(), gpus=float(torch.cuda.device_count()))]
    with connection.connect(address) as attempt:
        return nodes.capacity(experiment.resources.startable, private=attempt.scratch is not None)


def _samples(experiment: Experiment, number: int) -> Table:
    """The first trials, as if every trial had the same score."""
    paths = experiment.space.searched
    table = settings_table(("trial",), paths)
    search = SearchHistory(id="", experiment=experiment.name, fingerprint="", planned=number, tracking_uri="")
    suggestions = Suggestions(experiment, search)
    for trial in range(number):
        suggestion = suggestions.next(str(trial), trial)
        if suggestion is None:
            break
        values = suggestion.values
        experiment.trial_config(values)
        search.trials[str(trial)] = TrialHistory(
            number=trial, id=str(trial), values=values, sampler_state={}, status="finished", reports={1: {"gap": 0.0}}
        )
        table.add_row(str(trial), *setting_cells(experiment.space.settings(values), paths))
    return table
