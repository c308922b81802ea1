"""Search the best settings of an experiment of experiments.yaml on Ray: `python tune.py [EXPERIMENT]`."""

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from data.places import check_folder
from data.ranges import COUNT
from tuner.cli import add_file, add_set, add_storage, add_tracking_uri, main
from tuner.project import experiments_file, storage_place, told_file


def run() -> int:
    """Parse the command line and hand over to the tuner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "experiment", nargs="?", metavar="EXPERIMENT", help="a name in the file; default: the file's own default"
    )
    add_file(parser)
    add_set(parser)
    parser.add_argument("--trials", type=COUNT.whole, metavar="N", help="short for --set search.trials=N")
    parser.add_argument(
        "--warm-start",
        action="append",
        default=[],
        metavar="ID|EXPERIMENT",
        help="begin with what an earlier search knows, or all of an experiment; can be repeated (search.warm_start)",
    )
    add_storage(parser)
    add_tracking_uri(parser, default="$MLFLOW_TRACKING_URI, else mlflow.db beside the yaml")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="ID",
        help="resume a search of the experiment where it stopped; default: the newest one that has not ended",
    )
    parser.add_argument(
        "--extend",
        type=COUNT.whole,
        default=0,
        metavar="N",
        help="add N trials to the newest search, or to --search ID",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="try the failed trials of the newest search again, or of --search ID, and continue it",
    )
    parser.add_argument(
        "--search",
        metavar="ID",
        help="of --resume, --extend or --retry-failed (tuner.best --list shows all searches)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start a new search, and do not mention those that have not ended"
    )
    parser.add_argument("--dry-run", action="store_true", help="check file, space, shards and resources; train nothing")
    parser.add_argument("--explain", metavar="PATH", help="print what a setting or a block means, and end")
    parser.add_argument(
        "--address",
        metavar="auto|local|HOST:PORT",
        help="of a running Ray; default: $RAY_ADDRESS, else the cluster whose head is this machine, else a private Ray",
    )
    options = parser.parse_args()
    continues = options.resume is not None or options.extend > 0 or options.retry_failed
    if options.fresh and continues:
        parser.error("--fresh starts a new search, --resume, --extend and --retry-failed continue one")
    if options.search and not continues:
        parser.error("--search ID needs --resume, --extend N or --retry-failed")
    if options.resume is not None and options.retry_failed:
        parser.error(
            "--retry-failed continues the search as --resume does: leave --resume out (--search names a search)"
        )
    if options.search and options.resume and options.search != options.resume:
        parser.error("--resume and --search name two searches")

    if options.explain is not None:
        from tuner.config.reference import explain  # imports torch

        print(explain(options.explain))
        return 0

    file = experiments_file(options.file)
    storage = storage_place(options.storage, file)
    print(f"{told_file(options.file, file)}; searches are kept in {storage}", flush=True)
    if isinstance(storage, Path) and not options.dry_run:
        check_folder(storage)

    # Ray reads it when it is imported. A cluster that asks for a token, as `ray start` makes it wherever the user has
    # one, refuses a driver that does not show it.
    with suppress(OSError, RuntimeError):  # this user has no home, or none that can be read
        if Path("~/.ray/auth_token").expanduser().exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    from tuner.imports import without_garbage_collection
    from tuner.search import stages

    stages.begin("imports")
    print("importing torch, Ray, Optuna and MLflow", flush=True)  # it takes seconds, on a busy machine many
    with without_garbage_collection():  # here: `--help` needs none of it, and these know torch, ray and optuna
        from tuner.config.experiment import load
        from tuner.console import Console
        from tuner.search import driver
        from tuner.search.begin import Options
        from tuner.search.dry_run import dry_run
        from tuner.storage.searches import is_id

    overrides = tuple(options.set)
    if options.trials is not None:
        overrides += (f"search.trials={options.trials}",)
    if options.warm_start:
        overrides += (f"search.warm_start={json.dumps(options.warm_start)}",)
    console = Console()
    name, search = options.experiment, options.search or options.resume or None
    if name is None and search and not is_id(search):
        name, search = search, None  # `tune.py --resume EXPERIMENT`
    if options.dry_run:
        dry_run(load(file, name, overrides), console, address=options.address)
        return 0

    return driver.run(
        file,
        name,
        Options(
            storage=storage,
            tracking_uri=options.tracking_uri,
            overrides=overrides,
            address=options.address,
            resume=options.resume is not None,
            search=search,
            extend=options.extend,
            retry_failed=options.retry_failed,
            fresh=options.fresh,
        ),
        console,
    ).code


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
