"""Search the best settings of an experiment of experiments.yaml on Ray: `python tune.py [EXPERIMENT]`."""

import argparse
import sys
from pathlib import Path

from tuner.errors import main


def run() -> int:
    """Parse the command line and hand over to the tuner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="of the file; without: its default")
    parser.add_argument("--file", type=Path, metavar="YAML", help="experiments.yaml, here or beside this program")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="replace a setting, as in model.hidden=600"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="short for --set search.trials=N")
    parser.add_argument("--storage", metavar="DIR|URL", help="where searches live; without: storage/ beside the yaml")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="of MLflow; without: MLFLOW_TRACKING_URI, or mlflow.db beside the yaml"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the newest search of the experiment")
    parser.add_argument("--extend", type=int, default=0, metavar="N", help="add N trials to the newest search")
    parser.add_argument("--fresh", action="store_true", help="a new search beside the old ones, finished or not")
    parser.add_argument("--dry-run", action="store_true", help="check file, space, shards and resources; train nothing")
    parser.add_argument(
        "--address",
        metavar="auto|local|HOST:PORT",
        help="of a running Ray; without: RAY_ADDRESS, or the cluster that this machine heads, or a private Ray",
    )
    options = parser.parse_args()
    if options.extend < 0 or (options.trials is not None and options.trials < 1):
        parser.error("--trials and --extend take a number of trials, at least 1")
    if options.fresh and (options.resume or options.extend):
        parser.error("--fresh starts a new search, --resume and --extend go on with the newest one")

    # Imported here: `--help` needs none of it, and these know torch, ray and mlflow.
    from tuner.config import experiment as config
    from tuner.console import Console
    from tuner.storage import place as paths

    overrides = (*options.set, *([f"search.trials={options.trials}"] if options.trials is not None else []))
    file = paths.experiments_file(options.file)
    console = Console()
    if options.dry_run:
        from tuner.search.dry_run import dry_run

        dry_run(config.load(file, options.experiment, overrides), console, address=options.address)
        return 0

    from tuner.search import driver as search

    return search.run(
        file,
        options.experiment,
        search.Options(
            storage=paths.storage(options.storage, file),
            tracking_uri=options.tracking_uri,
            overrides=overrides,
            address=options.address,
            resume=options.resume,
            extend=options.extend,
            fresh=options.fresh,
        ),
        console,
    )


if __name__ == "__main__":
    sys.exit(main(run))
