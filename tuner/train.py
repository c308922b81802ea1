"""Train one trial without Ray and MLflow: to debug, to profile, to repeat a trial of a search.

python -m tuner.train EXPERIMENT [--set path=value ...] [--device cpu|cuda]
python -m tuner.train --trial RUN_ID
python -m tuner.train EXPERIMENT --save DIR [--resume | --fresh]
"""

import argparse
import json
import sys
import time
from pathlib import Path

from data import machine
from data.places import check_folder
from data.ranges import Range
from tuner.cli import add_device, add_file, add_set, add_storage, add_tracking_uri, choose_device, main


def run(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        TunerError: the experiment, the trial or the checkpoint cannot be used, or the training failed.
        DataError: the shards cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.train",
        description="Train one trial without Ray: to debug, to profile, to repeat a trial of a search.",
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="its defaults (trial 0) are trained")
    add_file(parser)
    add_set(parser)
    parser.add_argument(
        "--trial",
        metavar="RUN_ID",
        help="train a trial of a search again, with its settings and seed: its MLflow run or its trial_id",
    )
    add_storage(parser)
    add_tracking_uri(parser, default="$MLFLOW_TRACKING_URI, else mlflow.db beside the yaml")
    add_device(parser)
    parser.add_argument(
        "--threads",
        type=Range(1, 4096).whole,
        metavar="N",
        help="of torch on the CPU, on which the last digits of the metrics depend; default: as many as a trial of a "
        "search on this machine has (resources.cpu)",
    )
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the last checkpoint there")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue with the checkpoint in the folder of --save")
    again.add_argument(
        "--fresh", action="store_true", help="begin with epoch 1; rename the folder of --save where it exists"
    )
    options = parser.parse_args(arguments)
    if (options.resume or options.fresh) and options.save is None:
        parser.error("--resume and --fresh need the folder of a checkpoint: name it with --save DIR")
    if options.save is not None:
        check_folder(options.save)
    if options.trial and (options.experiment or options.set):
        parser.error("--trial brings its own settings; leave EXPERIMENT and --set out")

    # Imported here: `--help` needs none of these.
    from rich.console import Console

    from data.cache.bar import build_bar
    from tuner.cluster.resources import threads_of
    from tuner.config import preflight
    from tuner.config.experiment import load
    from tuner.console.text import describe_losses
    from tuner.project import experiments_file, storage_place, told_file
    from tuner.training.checkpoint import prepare_folder
    from tuner.training.dataset import open_dataset
    from tuner.training.pipelines import train
    from tuner.workers.process import begin_trial

    device = choose_device(options.device)
    file = experiments_file(options.file)
    if options.trial:
        from tuner.search.replay import find

        found = find(options.trial, storage_place(options.storage, file), options.tracking_uri, file)
        experiment, values, number, encoders = found.experiment, found.values, found.number, found.encoders
    else:
        print(told_file(options.file, file))
        experiment = load(file, options.experiment, options.set)
        values, number, encoders = experiment.space.defaults(), 0, None
    trial = experiment.trial_config(values)
    resume_from = None
    if options.save is not None:
        resume_from = prepare_folder(
            options.save, settings=trial.settings, resume=options.resume, fresh=options.fresh, print_line=print
        )
    checked = bool(options.trial)  # when its search began
    sentences = [] if checked else preflight.check_files(experiment)
    with build_bar(Console(stderr=True)) as show, preflight.naming_settings(experiment):
        data = open_dataset(experiment.data, show)
    for sentence in sentences + ([] if checked else preflight.check_data(experiment, data)):
        print(sentence)
    cpus = experiment.resources.cpu
    begin_trial(device, options.threads or threads_of(machine.cpus() if cpus == "auto" else cpus))
    print(
        f"{experiment.name} on {device}: {data.train.num_videos:,} training videos, "
        f"{data.validate.num_videos:,} validation videos"
    )
    for split, cache in (("train", data.train), ("validate", data.validate)):
        for sentence in cache.remarks():
            print(f"data.{split}: {sentence}")
    print(json.dumps(trial.settings))
    started = time.monotonic()
    every_epoch = train(
        trial, data, device=device, seed=trial.seed(number), resume_from=resume_from, encoder_store=encoders
    )
    for progress in every_epoch:
        metrics = progress.metrics
        speed = metrics.get("videos_per_second")  # an encoder from the store was not trained here
        print(
            f"epoch {progress.epoch}/{trial.epochs}  {describe_losses(metrics, 4)}"
            f"validate {metrics['loss_validate']:.4f}  GAP {metrics['gap']:.4f}  best {metrics['gap_best']:.4f}"
            + (f"  {speed:,.0f} videos/s" if speed else "")
        )
        if options.save is not None and not progress.repeated:
            progress.state.save(options.save, trial)
    print(json.dumps({**progress.metrics, "seconds": round(time.monotonic() - started, 3)}))


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
