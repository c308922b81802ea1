"""What a search prints at its end: the best trial, the table of trials, and the commands to use next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from tuner.config.experiment import Experiment
from tuner.console import Console, describe_settings, leader_table
from tuner.project import program, tune_again
from tuner.search.insight import learnt
from tuner.search.stopper import StopRule
from tuner.storage.journal import Journal, SearchHistory
from tuner.tracking.uri import ui_command
from tuner.training.dataset import Dataset, missing_shards

# Trials in the table; `tuner.best --top` shows any number of them.
LEADERS = 20


def print_summary(
    search: SearchHistory, stop: StopRule, experiment: Experiment, data: Dataset, console: Console
) -> int:
    """Print how a search ended, and return the exit code of `tune.py`.

    Returns:
        0: a trial finished; 1: no trial finished; 2: a fatal error ended the search; 130: a signal did.
    """
    console.print()
    if stop.interrupted:
        console.print(interrupted(search, _fatal_error(stop.fatal_error, data) or "interrupted"))
        return 130 if stop.fatal_error is None else 2
    if not search.finished:
        errors = [trial.error for trial in search.failed]
        console.print(f"no trial finished; {len(errors)} failed, the first with: {errors[0] if errors else '-'}")
        return 1
    for line in _best(search):
        console.print(line)
    if stop.exhausted:
        console.print("  the search ended early: nothing is left to try")
    elif stop.reason:
        console.print(f"  the search ended early: {stop.reason}")
    if search.failed:
        console.print(f"  {len(search.failed)} trials failed, the first with: {search.failed[0].error}")
    console.print()
    console.print(_leaders(search, experiment))
    if lessons := learnt(experiment, search):
        console.print("\nwhat the search has learnt:")
        for sentence in lessons:
            console.print(f"  {sentence}")
    console.print("\nnext:")
    console.print(f"  {program('python')} -m tuner.best {shlex.quote(search.experiment)} --export")
    console.print(f"  {ui_command(program('mlflow'), search.tracking_uri)}")
    return 0


def conclude_tracking(journal: Journal, refused: Sequence[str], undelivered: int, log: Path, console: Console) -> None:
    """Record in the journal of a search that has ended that MLflow has everything, or print what it does not have.

    Args:
        journal: of the search, open.
        refused: the errors of the writes that MLflow has refused.
        undelivered: number of writes that it did not get.
        log: the file with the whole errors.
        console: prints.
    """
    search = journal.search
    assert search is not None
    server = f"MLflow at {search.tracking_uri}"
    if refused:
        console.print(f"{server} refused {len(refused)} writes, the first with: {refused[0]}; see {log}")
    if undelivered:
        console.print(f"{server} has not received {undelivered} writes")
    if refused or undelivered:
        console.print(f"the journal has them, and this command writes them again: {resume_command(search)}")
    elif search.ended:
        journal.append("tracked")


def interrupted(search: SearchHistory, why: str = "interrupted") -> str:
    """How far a search is that did not end, and how to resume it, in two lines."""
    return (
        f"{why}: {len(search.finished)} of {search.planned} trials are finished, {len(search.unfinished)} keep "
        f"their last checkpoint\nresume it with: {resume_command(search)}"
    )


def resume_command(search: SearchHistory) -> str:
    """The command that resumes a search."""
    return tune_again(search.experiment, "--resume", search.id)


def _best(search: SearchHistory) -> list[str]:
    best, untuned = search.finished[0], search.untuned_score
    score = best.score or 0.0
    gain = f", {score - untuned:+.4f} over trial 0 (the defaults)" if untuned is not None else ""
    times = f" ({score / search.baseline:.1f} times)" if search.baseline else ""
    over = f"{score - search.baseline:+.4f} over ranking by label frequency{times}"
    return [
        f"best trial {best.number:03d}: GAP {score:.4f}{gain}, {over}",
        "  " + describe_settings(best.settings),
        *(
            f"  on all of {split}: GAP {scores['gap']:.4f} over {scores['num_videos']:,.0f} videos"
            for split, scores in search.metrics_on_whole_splits(best).items()
        ),
    ]


def _leaders(search: SearchHistory, experiment: Experiment) -> Table:
    return leader_table(search.finished[:LEADERS], experiment.space.searched)


def _fatal_error(error: str | None, data: Dataset) -> str | None:
    """The error, with the shards that have disappeared since the data was opened: they may be its cause."""
    if error is not None and (missing := missing_shards(data)):
        return f"{error}; missing: {', '.join(missing[:3])}{' and others' if missing[3:] else ''}"
    return error
