"""`tune.py --dry-run`: checks what can be wrong before a search starts, and prints what it would try."""

import os

import torch
from optuna.storages import InMemoryStorage
from rich.table import Table

from data.cache.recipe import find_shards
from data.frames import decode
from tuner.cluster import nodes
from tuner.cluster.resources import Node, describe, plan
from tuner.config.experiment import Experiment
from tuner.console import Console, setting_cells, settings_table
from tuner.search.samplers import Study, drawn_at_random, make_sampler, planned_values
from tuner.training.data_config import write_sample
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
        ConfigError: the cluster cannot hold a trial, or the vocabulary is damaged.
        SearchError: no Ray answers at `address`.
    """
    space, config = experiment.space, experiment.search
    console.print(
        f"{experiment.file}: {experiment.name} is valid at all {len(space.corners())} corners of its space, "
        f"{len(space.names())} parameters"
    )
    _check_shards(experiment, console)
    experiment.data.class_names()
    console.print(describe(plan(experiment.resources, _nodes(connection.resolve_address(address), experiment))))
    for sentence in drawn_at_random(space, config.sampler.kind):
        console.print(sentence)
    budget = f" or {config.time_budget:g} s" if config.time_budget is not None else ""
    console.print(
        f"{config.trials} trials{budget} of at most {experiment.max_epochs} epochs, sampler {config.sampler.kind}, "
        f"scheduler {config.scheduler.kind}; the first {min(SHOWN, config.trials)} if every trial scored alike:"
    )
    console.print(_samples(experiment, min(SHOWN, config.trials)))


def _check_shards(experiment: Experiment, console: Console) -> None:
    write_sample(experiment.data)
    for split in ("train", "validate", "test"):
        patterns = getattr(experiment.data, split)
        if patterns is None:
            continue
        shards = find_shards(patterns)
        first = decode(shards[0], experiment.data.schema)
        console.print(f"data.{split}: {len(shards)} shards; the first holds {len(first.ids)} valid videos")


def _nodes(address: str, experiment: Experiment) -> list[Node]:
    """The nodes of the cluster; this machine where the search would start a private Ray, which is not started here."""
    if address == "local":
        return [Node(cpus=float(os.cpu_count() or 1), gpus=float(torch.cuda.device_count()))]
    with connection.connect(address) as attempt:
        return nodes.capacity(experiment.resources.startable, private=attempt.scratch is not None)


def _samples(experiment: Experiment, number: int) -> Table:
    paths = experiment.space.searched
    table = settings_table(("trial",), paths)
    study = Study.create(InMemoryStorage())
    for trial in range(number):
        if study.exhausted:
            break
        study.sampler = make_sampler(experiment, trial)
        fixed = planned_values(experiment, trial)
        if fixed is not None:
            study.enqueue_trial(fixed)
        asked = study.ask()
        values = experiment.space.optuna(asked)
        experiment.trial_config(values)
        study.tell(asked, 0.0)
        table.add_row(str(trial), *setting_cells(experiment.space.settings(values), paths))
    return table
