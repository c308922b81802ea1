"""Show the best trial of a search and its leader table, and export its model.

    python -m tuner.best [EXPERIMENT] [--export [DIR]]
    python -m tuner.best [EXPERIMENT] --list
    python -m tuner.best [EXPERIMENT] --prune [--keep N] [--yes]

The command reads only the folder of the search, so it works while the search runs, and without MLflow. With `--ensemble
K`, it makes one model of several trials (tuner/export/ensemble.py); this needs the validation shards as well.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.places import check_folder
from data.ranges import COUNT, HUGE, Range
from tuner.cli import add_file, add_storage, add_tracking_uri, main
from tuner.project import program, storage_place
from tuner.storage import journal, searches
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.storage.stores import place

if TYPE_CHECKING:  # `--help` needs no torch
    from rich.console import Console

    from tuner.config.experiment import Experiment
    from tuner.export.ensemble import EnsembleOptions

TOP = 10
WIDTH = 240  # characters of a line of the table in a file or a pipe, which have no width
METRIC_NAMES = {"gap": "GAP", "hit_at_1": "Hit@1", "perr": "PERR", "map": "mAP"}


def run(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SearchError: the storage has no such experiment or search.
        NothingToExport: no trial has finished, or no finished trial can be a member of the ensemble.
        TunerError: a single member is larger than the size limit.
        DataError: the validation shards, which an ensemble needs, cannot be read.
        ModelFolderError: the folder of the export holds something else.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.best", description="Show and export the best trial of a search."
    )
    parser.add_argument(
        "experiment", nargs="?", metavar="EXPERIMENT", help="default: the experiment of the newest search"
    )
    parser.add_argument("--search", metavar="ID", help="default: the newest search of the experiment")
    parser.add_argument(
        "--export",
        nargs="?",
        const="",
        metavar="DIR|URL",
        help="write a model folder; default: exports/EXPERIMENT-SEARCH, and what an ensemble is: -ensemble-K",
    )
    parser.add_argument("--list", action="store_true", help="show all searches, the newest last, and end")
    add_storage(parser)
    add_file(parser)
    add_tracking_uri(parser, default="the one that the search used")
    parser.add_argument(
        "--top", type=COUNT.whole, default=TOP, metavar="N", help="number of trials in the table; default: %(default)s"
    )
    pruning = parser.add_argument_group("pruning")
    pruning.add_argument(
        "--prune",
        action="store_true",
        help="say which checkpoints no resume and no export needs, in all searches or in --search ID, and end",
    )
    pruning.add_argument(
        "--keep",
        type=COUNT.whole,
        metavar="N",
        help="trials that keep their weights; default: search.keep of the search",
    )
    pruning.add_argument("--yes", action="store_true", help="remove them")
    ensemble = parser.add_argument_group("ensembles")
    ensemble.add_argument(
        "--ensemble",
        type=COUNT.whole,
        metavar="K",
        help="make one model of the K best trials: it gives the weighted mean of their probabilities",
    )
    ensemble.add_argument(
        "--bagging",
        action="store_true",
        help="use trials that were trained on different bootstrap samples (loss.bootstrap: fixed)",
    )
    ensemble.add_argument(
        "--weights",
        choices=["validation", "equal"],
        default="validation",
        help="weights of the members: chosen on the validation videos (default), or all equal",
    )
    ensemble.add_argument(
        "--size-limit",
        type=Range(0, HUGE, "low").number,
        metavar="MIB",
        help="largest size of model.safetensors; the weakest members are dropped until it fits",
    )
    ensemble.add_argument("--half", action="store_true", help="store the weight matrices as float16")
    options = parser.parse_args(arguments)
    for name in ("bagging", "size_limit", "half"):
        if getattr(options, name) and not options.ensemble:
            parser.error(f"--{name.replace('_', '-')} needs --ensemble K; --ensemble 1 is the best trial alone")

    for name in ("keep", "yes"):
        if getattr(options, name) and not options.prune:
            parser.error(f"--{name} needs --prune")
    if options.prune:
        _prune(options)
        return
    if options.list:
        _list(searches.of(storage_place(options.storage, options.file), options.experiment))
        return
    directory = searches.find(storage_place(options.storage, options.file), options.experiment, options.search)
    search = journal.read(directory)
    winner = search.best_trial()

    from tuner.config.experiment import Experiment
    from tuner.export.writer import export_best

    experiment = Experiment.stored(directory, search.experiment, options.file)
    console = _console()
    _show(console, search, winner, experiment, top=options.top, tracking_uri=options.tracking_uri)
    default = f"exports/{search.experiment}-{search.id}"
    folder = None
    if options.export is not None:
        folder = place(options.export or default, "--export")
        if isinstance(folder, Path):
            check_folder(folder)
    if options.ensemble:
        from tuner.export.ensemble import EnsembleOptions

        wanted = EnsembleOptions(
            count=options.ensemble,
            bagging=options.bagging,
            weights=options.weights,
            size_limit=options.size_limit,
            float16=options.half,
        )
        named_after = None if options.export else default
        folder = _ensemble(console, folder, named_after, directory, experiment, search, wanted)
    elif folder is not None:
        console.print()
        export_best(
            folder,
            search_directory=directory,
            experiment=experiment,
            search=search,
            class_names=experiment.data.class_names(),
            print_line=console.print,
        )
    if folder is not None:
        console.print("next:")
        console.print(f"  {program('python')} -m tuner.evaluate {shlex.quote(str(folder))} --data 'GLOB'")
        console.print(
            f"  {program('python')} -m tuner.predict {shlex.quote(str(folder))} --data 'GLOB' --output predictions.csv"
        )


def _prune(options: argparse.Namespace) -> None:
    """Say what no resume and no export needs, and remove it with --yes."""
    from tuner.config.experiment import Experiment
    from tuner.export import pruning

    storage = storage_place(options.storage, options.file)
    found = searches.of(storage, options.experiment)
    if options.search:
        found = [searches.find(storage, options.experiment, options.search)]
    total = 0
    for directory in found:
        keep = options.keep or Experiment.stored(directory, directory.parent.name, options.file).search.keep
        planned = pruning.plan(directory, keep)
        if planned.folders:
            print(planned.describe())
            total += pruning.prune(directory, keep) if options.yes else planned.bytes
    if options.yes:
        print(f"removed {total / pruning.MIB:,.1f} MiB")
    else:
        print(f"nothing is removed yet: --yes removes {total / pruning.MIB:,.1f} MiB")


def _list(found: list[Place]) -> None:
    """Print a table of searches."""
    from tuner.console import search_table

    _console().print(search_table(found))


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def _show(
    console: "Console",
    search: SearchHistory,
    winner: TrialHistory,
    experiment: "Experiment",
    *,
    top: int,
    tracking_uri: str | None,
) -> None:
    from tuner.console import describe_settings, leader_table
    from tuner.tracking.uri import ui_command

    score = winner.score or 0.0
    state = f"ended: {search.ended}" if search.ended else "not ended: it runs or was interrupted"
    console.print(
        f"{search.experiment}, search {search.id} ({state}): {len(search.finished)} of {search.planned} trials finished"
        + (f", {len(search.failed)} failed, the first with: {search.failed[0].error}" if search.failed else "")
    )
    epochs = f"in epoch {winner.best_epoch} of {winner.last_epoch}"
    console.print(f"best: trial {winner.number:03d}  GAP {score:.4f} {epochs}")
    console.print(f"  {describe_settings(winner.settings) or 'the experiment searches no parameter'}")
    console.print(f"  {_over_trial_0(search, score)}, {score - search.baseline:+.4f} over ranking by label frequency")
    for split, scores in search.metrics_on_whole_splits(winner).items():
        named = (f"{name} {scores[key]:.4f}" for key, name in METRIC_NAMES.items())
        console.print(f"  on all of {split}: {'  '.join(named)}")
    uri = tracking_uri or search.tracking_uri
    run = f"run 'trial {winner.number:03d}' below {search.id}, tag trial_id {winner.id}"
    console.print(f"  in MLflow: {run}; {ui_command(program('mlflow'), uri)}")
    console.print()
    console.print(leader_table(search.finished[:top], experiment.space.searched))


def _over_trial_0(search: SearchHistory, score: float) -> str:
    if search.untuned_score is None:
        return "trial 0 (the defaults) has no score"
    return f"{score - search.untuned_score:+.4f} over trial 0 (the defaults)"


def _ensemble(
    console: "Console",
    folder: Place | None,
    named_after: str | None,
    directory: Place,
    experiment: "Experiment",
    search: SearchHistory,
    options: "EnsembleOptions",
) -> Place | None:
    """Assemble an ensemble, and export it unless `folder` is None.

    Returns:
        Where it was exported: `folder`, or `named_after` and what the ensemble is, which is known when it is assembled.
    """
    from tuner.console.activity import saying
    from tuner.export.ensemble import assemble
    from tuner.export.layout import check_target
    from tuner.export.writer import export_model

    if folder is not None and named_after is None:
        check_target(folder.absolute(), search, None)  # before the members are scored, which takes long
    console.print()
    with saying("scoring the members of the ensemble"):
        assembled = assemble(directory, experiment, search, options, console.print)
    console.print("\n".join(assembled.describe()))
    if folder is not None:
        if named_after is not None:
            folder = place(f"{named_after}-{assembled.name}", "--export")
        export_model(
            folder,
            assembled.to_export(experiment),
            search_directory=directory,
            experiment=experiment,
            search=search,
            class_names=experiment.data.class_names(),
            print_line=console.print,
        )
    return folder


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
