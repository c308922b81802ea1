"""One trial of any pipeline as a generator of Progress: plain PyTorch, no Ray.

    python -m tuner.train EXPERIMENT [--set path=value ...] [--trial RUN_ID] [--device cpu|cuda]
    python -m tuner.train EXPERIMENT --save DIR [--resume | --fresh]

Ray's workers (tuner/workers/worker.py), the tests and this command line all consume the same generator.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch

from models import LinearConfig
from tuner.cli import add_device, add_file, add_set, add_storage, add_tracking_uri, choose_device, main
from tuner.errors import CheckpointDamaged, CheckpointError, ConfigError
from tuner.training import checkpoint, supervised
from tuner.training.config import ContrastiveConfig, Trial
from tuner.training.contrastive import linear
from tuner.training.contrastive import trial as contrastive
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.ranks import ALONE, Ranks
from tuner.training.supervised import Progress


def train(
    trial: Trial,
    data: Dataset,
    *,
    device: torch.device,
    seed: int,
    resume_from: Path | None = None,
    encoder_store: EncoderStore | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress]:
    """Train and yield after each epoch, first validating.

    Args:
        trial: the settings; their class says which pipeline.
        data: the decoded splits and the statistics of the training split.
        device: where model and batches live.
        seed: of all that is drawn; the same seed gives the same numbers on the same machine.
        resume_from: a checkpoint of this trial; its epoch is the last one not repeated.
        encoder_store: where a contrastive trial looks for pretrained encoders and keeps its own; None: nowhere.
        ranks: the processes that train it together, each calling this; they yield the same metrics but for the times.

    Raises:
        TrialDiverged: a loss is not finite; the weights are left as they were before that step.
        TrialCollapsed: a pretrained encoder makes one embedding of all videos.
        CheckpointError: `resume_from` is damaged, or other settings shaped it.
        ConfigError: the pipeline, or the model, trains on one rank only.
    """
    if isinstance(trial, ContrastiveConfig):
        if ranks.size > 1:
            raise ConfigError(f"pipeline: contrastive trains on one worker, but got {ranks.size}")
        return contrastive.train(
            trial, data, device=device, seed=seed, resume_from=resume_from, encoder_store=encoder_store
        )
    if isinstance(trial.model, LinearConfig):
        if ranks.size > 1:
            raise ConfigError(f"model.kind linear is fitted on one worker, but got {ranks.size}")
        return linear.train(trial, data, device=device, seed=seed, resume_from=resume_from)
    return supervised.train(trial, data, device=device, seed=seed, resume_from=resume_from, ranks=ranks)


def run(arguments: list[str] | None = None) -> None:
    """The command line: one trial here and now, without Ray and MLflow."""
    parser = argparse.ArgumentParser(
        prog="python -m tuner.train", description="Train one trial without Ray: to debug, to profile, to replay."
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="its defaults (trial 0) are trained")
    add_file(parser)
    add_set(parser)
    parser.add_argument(
        "--trial", metavar="RUN_ID", help="replay a trial: its MLflow run or its trial_id, with its settings and seed"
    )
    add_storage(parser)
    add_tracking_uri(parser, default="$MLFLOW_TRACKING_URI, else mlflow.db beside the yaml")
    add_device(parser)
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the last checkpoint there")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the checkpoint in --save's folder")
    again.add_argument("--fresh", action="store_true", help="start anew; what is in --save's folder is moved aside")
    options = parser.parse_args(arguments)
    if (options.resume or options.fresh) and options.save is None:
        parser.error("--resume and --fresh speak of a checkpoint: name its folder with --save DIR")
    if options.trial and (options.experiment or options.set):
        parser.error("--trial brings its own settings; leave EXPERIMENT and --set out")

    # Imported here: the generator above runs where pydantic and yaml are missing.
    from tuner.config import experiment as config
    from tuner.project import experiments_file, storage_place

    device = choose_device(options.device)
    file = experiments_file(options.file)
    if options.trial:
        from tuner.search.replay import find

        experiment, values, number = find(
            options.trial, storage_place(options.storage, file), options.tracking_uri, file
        )
    else:
        experiment = config.load(file, options.experiment, options.set)
        values, number = experiment.space.defaults(), 0
    trial = experiment.trial_config(values)
    resume_from = _make_way(options.save, trial, resume=options.resume, fresh=options.fresh) if options.save else None
    data = open_dataset(experiment.data)
    print(f"{experiment.name} on {device}: {data.train.num_videos:,} videos, {data.validate.num_videos:,} to validate")
    print(json.dumps(trial.settings))
    started = time.monotonic()
    for progress in train(trial, data, device=device, seed=trial.seed(number), resume_from=resume_from):
        metrics = progress.metrics
        names = {"loss_train": "loss", "loss_pretrain": "contrastive loss"}
        loss = "".join(f"{name} {metrics[key]:.4f}  " for key, name in names.items() if key in metrics)
        print(
            f"epoch {progress.epoch}/{trial.epochs}  {loss}"
            f"validate {metrics['loss_validate']:.4f}  GAP {metrics['gap']:.4f}  best {metrics['gap_best']:.4f}  "
            f"{metrics['videos_per_second']:,.0f} videos/s"
        )
        if options.save is not None and not progress.repeated:
            progress.state.save(options.save, trial)
    print(json.dumps({**progress.metrics, "seconds": round(time.monotonic() - started, 3)}))


def _make_way(directory: Path, trial: Trial, *, resume: bool, fresh: bool) -> Path | None:
    """The checkpoint to go on with, if any. What is in the way is moved aside, never overwritten or removed.

    Raises:
        CheckpointError: there is none to resume, or other settings shaped it; or one is there that nobody spoke of.
    """
    if not directory.exists():
        if resume:
            raise CheckpointError(f"{directory}: there is no checkpoint to go on with; leave --resume out to begin one")
        return None
    if resume:
        try:
            checkpoint.manifest_of(directory, trial.settings)
        except CheckpointDamaged:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}\nput these back to go on with it, or take --fresh, which moves it aside and starts anew"
            ) from error
        return directory
    if not fresh:
        raise CheckpointError(
            f"{directory} is there already: --resume goes on with it, --fresh moves it aside and starts anew"
        )
    aside = next(path for n in count(1) if not (path := directory.with_name(f"{directory.name}.{n}")).exists())
    directory.rename(aside)
    print(f"moved {directory} to {aside}")
    return None


if __name__ == "__main__":
    sys.exit(main(run))
