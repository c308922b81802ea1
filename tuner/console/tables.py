"""Tables of trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tuner.console.text import describe_end, describe_value
from tuner.errors import SearchError, first_line
from tuner.storage import journal
from tuner.storage.journal import TrialHistory
from tuner.storage.place import Place


def settings_table(columns: Sequence[str], paths: Sequence[str]) -> Table:
    """An empty table of trials.

    Args:
        columns: the first headers.
        paths: of the settings, one column each; a header is broken after the dots.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right")
    for path in paths:
        table.add_column(path.replace(".", ".\n"), justify="right", vertical="bottom")
    return table


def setting_cells(settings: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """The cells of a trial in the columns of its settings."""
    return [describe_value(settings.get(path)) for path in paths]


def search_table(folders: Sequence[Place]) -> Table:
    """The table of searches: state, trials and best GAP, each as its journal has it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "search", "state", "trials", "failed", "GAP", "best trial"):
        table.add_column(name, justify="right" if name in ("trials", "failed", "GAP", "best trial") else "left")
    for folder in folders:
        try:
            search = journal.read(folder)
        except SearchError as error:
            table.add_row(folder.parent.name, folder.name, first_line(error))
            continue
        state = f"ended: {search.ended}" if search.ended else "not ended"
        counts = f"{len(search.finished)} of {search.planned}", str(len(search.failed))
        best = search.finished[0] if search.finished else None
        shown = (f"{best.score:.4f}", f"{best.number:03d}") if best else ("-", "-")
        table.add_row(search.experiment, search.id, state, *counts, *shown)
    return table


def leader_table(trials: Sequence[TrialHistory], paths: Sequence[str]) -> Table:
    """The table of the best trials, in the given order, with the settings `paths` that were searched."""
    table = settings_table(("trial", "GAP", "epoch", "ended"), paths)
    for trial in trials:
        facts = f"{trial.number:03d}", f"{trial.score:.4f}", str(trial.best_epoch), describe_end(trial)
        table.add_row(*facts, *setting_cells(trial.settings, paths))
    return table
