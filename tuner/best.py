"""The best trial of a search, its leader table, and its model: `python -m tuner.best [EXPERIMENT] [--export [DIR]]`.

Reads the search's folder alone, so it works while the search runs, and without MLflow. With `--ensemble K` the model is
made of several trials (tuner/export/ensemble.py); that takes the validation shards too.
"""

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import NothingToExport, SearchError, main
from tuner.inference.streaming import positive
from tuner.storage import journal
from tuner.storage import place as paths
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place, program

if TYPE_CHECKING:  # `--help` needs no torch
    from rich.console import Console

    from tuner.config.experiment import Experiment
    from tuner.export.ensemble import Options

TOP = 10
WIDTH = 240  # columns of the table in a file or a pipe, where no terminal says
METRIC_NAMES = {"gap": "GAP", "hit_at_1": "Hit@1", "perr": "PERR", "map": "mAP"}


def run(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        SearchError: no such experiment or search in the storage.
        NothingToExport: no trial has finished, or none that the ensemble wants.
        TunerError: no ensemble keeps to the size limit.
        DataError: the validation shards of an ensemble are not at hand.
        ModelFolderError: the folder of the export is something else already.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.best", description="Show and export the best trial of a search."
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="default: that of the newest search")
    parser.add_argument("--search", metavar="ID", help="default: the newest of the experiment")
    parser.add_argument(
        "--export", nargs="?", const="", metavar="DIR|URL", help="write the model; default: exports/EXPERIMENT-SEARCH"
    )
    parser.add_argument("--storage", metavar="DIR|URL", help="default: $TUNER_STORAGE, or storage/ beside the yaml")
    parser.add_argument("--file", type=Path, metavar="YAML", help="default: experiments.yaml, here or the project's")
    parser.add_argument("--tracking-uri", metavar="URI", help="of the MLflow to name; default: where the search logged")
    parser.add_argument("--top", type=int, default=TOP, metavar="N", help="trials in the table; default: %(default)s")
    ensemble = parser.add_argument_group("ensembles")
    ensemble.add_argument(
        "--ensemble", type=positive, metavar="K", help="make one model of the K best trials: the mean of probabilities"
    )
    ensemble.add_argument(
        "--bagging",
        action="store_true",
        help="of trials on bootstrap samples of their own (loss.bootstrap: fixed)",
    )
    ensemble.add_argument(
        "--weights",
        choices=["validation", "equal"],
        default="validation",
        help="of the members: chosen on the validation videos (default), or all equal",
    )
    ensemble.add_argument(
        "--size-limit",
        type=_mib,
        metavar="MIB",
        help="of model.safetensors: the weakest members are dropped",
    )
    ensemble.add_argument("--half", action="store_true", help="store the weight matrices as float16")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top takes a number of trials, at least 1, but got {options.top}")
    for name in ("bagging", "size_limit", "half"):
        if getattr(options, name) and not options.ensemble:
            parser.error(f"--{name.replace('_', '-')} belongs to --ensemble K; --ensemble 1 is the best trial alone")

    storage = paths.storage(options.storage, options.file)
    directory = find_search(storage, options.experiment, options.search)
    search = journal.read(directory)
    winner = best_trial(search)

    from rich.console import Console

    from tuner.config.experiment import Experiment

    stored = directory / "experiment.yaml"
    experiment = Experiment.from_yaml(stored.read_text(), search.experiment, options.file or Path(str(stored)))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    _show(console, search, winner, experiment, top=options.top, tracking_uri=options.tracking_uri)
    suffix = f"-ensemble-{options.ensemble}" if options.ensemble else ""
    folder = None
    if options.export is not None:
        folder = paths.place(options.export or f"exports/{search.experiment}-{search.id}{suffix}", "--export")
    if options.ensemble:
        from tuner.export.ensemble import Options

        wanted = Options(
            count=options.ensemble,
            bagging=options.bagging,
            weights=options.weights,
            size_limit=options.size_limit,
            half=options.half,
        )
        _ensemble(console, folder, directory, experiment, search, wanted)
    elif folder is not None:
        _export(console, folder, directory, experiment, search, winner)
    if folder is not None:
        console.print("next:")
        console.print(f"  {program('python')} -m tuner.evaluate {folder} --data 'GLOB'")
        console.print(f"  {program('python')} -m tuner.predict {folder} --data 'GLOB' --output predictions.csv")


def find_search(storage: Place, experiment: str | None, search_id: str | None) -> Place:
    """The folder of a search.

    Args:
        storage: where all searches are.
        experiment: None: that of the newest search, or of the one that is named.
        search_id: None: the newest of the experiment.

    Raises:
        SearchError: there is none; says which there are, the nearest first.
    """
    found = journal.searches(storage)
    known = sorted({path.parent.name for path in found})
    if not known:
        raise SearchError(f"{storage}: no search there yet; `python tune.py` runs one, --storage DIR looks elsewhere")
    if experiment is not None and experiment not in known:
        raise SearchError(f"{storage}: no search of an experiment {experiment!r}; {_nearest(experiment, known)}")
    found = [path for path in found if experiment in (None, path.parent.name)]
    if search_id is None:
        return found[-1]
    chosen = [path for path in found if path.name == search_id]
    if not chosen:
        of = f" of {experiment}" if experiment else ""
        nearest = _nearest(search_id, [path.name for path in found])
        raise SearchError(f"{storage}: no search {search_id!r}{of}; {nearest}")
    return chosen[-1]


def best_trial(search: SearchHistory) -> TrialHistory:
    """The finished trial with the best score.

    Raises:
        NothingToExport: there is none; says how many failed, and why the first one did.
    """
    if search.finished:
        return search.finished[0]
    failed = f"{len(search.failed)} failed"
    if search.failed:
        failed += f", the first with: {search.failed[0].error}"
    running = f"{len(search.unfinished)} have not ended; " if search.unfinished else ""
    raise NothingToExport(f"search {search.id} of {search.experiment}: no trial has finished; {running}{failed}")


def _mib(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of MiB above 0, but got {text!r}")
    return size


def _nearest(name: str, known: list[str]) -> str:
    """What may have been meant, and what there is."""
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = ", and older ones" if len(known) > TOP else ""
    return f"{hint}there {'is' if len(known) == 1 else 'are'} {', '.join(known[-TOP:])}{more}"


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
    from tuner.tracking.tracker import ui_command

    score = winner.score or 0.0
    state = f"ended: {search.ended}" if search.ended else "not ended: it runs, or was interrupted"
    console.print(
        f"{search.experiment}, search {search.id} ({state}): {len(search.finished)} of {search.planned} trials finished"
        + (f", {len(search.failed)} failed, the first with: {search.failed[0].error}" if search.failed else "")
    )
    epochs = f"in epoch {winner.best_epoch} of {winner.last_epoch}"
    console.print(f"best: trial {winner.number:03d}  GAP {score:.4f} {epochs}")
    console.print(f"  {describe_settings(winner.settings) or 'the experiment searches no parameter'}")
    console.print(f"  {_over_trial_0(search, score)}, {score - search.baseline:+.4f} over ranking by label frequency")
    for split, scores in whole_splits(search, winner).items():
        named = (f"{name} {scores[key]:.4f}" for key, name in METRIC_NAMES.items())
        console.print(f"  on all of {split}: {'  '.join(named)}")
    uri = tracking_uri or search.tracking_uri
    run = f"run 'trial {winner.number:03d}' below {search.id}, tag trial_id {winner.id}"
    console.print(f"  in MLflow: {run}; {ui_command(uri)}")
    console.print()
    console.print(leader_table(search.finished[:top], experiment.space.searched))


def whole_splits(search: SearchHistory, trial: TrialHistory) -> dict[str, dict[str, float]]:
    """The trial's metrics on whole splits, by split; empty where it was not, or not yet, scored on them."""
    known = search.winner or {}
    return dict(known["metrics"]) if known.get("trial") == trial.id else {}


def _over_trial_0(search: SearchHistory, score: float) -> str:
    first = next((trial for trial in search.trials.values() if trial.number == 0), None)
    if first is None or first.score is None:
        return "trial 0 (the defaults) has no score"
    return f"{score - first.score:+.4f} over trial 0 (the defaults)"


def _ensemble(
    console: "Console",
    folder: Place | None,
    directory: Place,
    experiment: "Experiment",
    search: SearchHistory,
    options: "Options",
) -> None:
    from tuner.export import ensemble
    from tuner.export import writer as export

    if folder is not None:
        export.check_target(folder.absolute(), search, None)  # before the long part
    console.print()
    built = ensemble.build(directory, experiment, search, options, console.print)
    console.print("\n".join(ensemble.describe(built)))
    if folder is not None:
        export.publish(
            folder,
            built.subject(experiment),
            search_directory=directory,
            experiment=experiment,
            search=search,
            class_names=experiment.data.class_names(),
            say=console.print,
        )


def _export(
    console: "Console",
    folder: Place,
    directory: Place,
    experiment: "Experiment",
    search: SearchHistory,
    winner: TrialHistory,
) -> None:
    from tuner.export import writer as export

    class_names = experiment.data.class_names()
    console.print()
    trials = [winner, *(trial for trial in search.finished if trial.id != winner.id)]
    for number, trial in enumerate(trials, start=1):
        try:
            export.write(
                folder,
                search_directory=directory,
                experiment=experiment,
                search=search,
                trial=trial,
                metrics=whole_splits(search, trial),
                class_names=class_names,
                say=console.print,
            )
            break
        except NothingToExport as error:
            if number == len(trials):
                raise
            console.print(
                f"{error}; the next best is trial {trials[number].number:03d}, GAP {trials[number].score:.4f}"
            )


if __name__ == "__main__":
    sys.exit(main(run))
