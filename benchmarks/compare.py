"""Tune and compare the models that an experiment chooses between; prints the tables of results in docs/.

    python benchmarks/compare.py audioset_small|yt8m_small_models [--trials N] [--state DIR]

Every option of the experiment's `model` gets the same number of trials on one seed; the first trial has the defaults.
The score of a trial is the GAP of its best epoch on a tenth of the training videos, which is held out; a trial ends
after two epochs without a gain. Then the best settings are trained on 3 seeds, on all training videos, for the best
number of epochs, and scored once on the validation videos: GAP@20, and mAP, the mean over all classes with a positive
of the average precision over all videos. Every finished run is stored in --state; after an interruption, the same
command resumes with the next run.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import torch
from card import show, spread
from few_labels import held_out

from data.ranges import COUNT
from tuner.cli import main
from tuner.config import distributions
from tuner.config.experiment import Experiment, load
from tuner.console import describe_seconds
from tuner.errors import ConfigError
from tuner.inference import scorecard
from tuner.storage.local import replacing
from tuner.training.config import TrialConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.pipelines import train
from tuner.training.state import TrainingState

HERE = Path(__file__).resolve().parent
SEEDS = (1, 2, 3)
PATIENCE = 2  # epochs without a gain
CPU = torch.device("cpu")
Found = dict[str, Any]


def run(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/compare.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", metavar="EXPERIMENT", help="of experiments.yaml, with a choice of models")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as in tune.py")
    parser.add_argument("--trials", type=COUNT.whole, default=6, metavar="N", help="of every model")
    parser.add_argument("--state", type=Path, default=HERE.parent / "storage" / "compare", metavar="DIR")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options.state.mkdir(parents=True, exist_ok=True)
    started, file = time.monotonic(), HERE.parent / "experiments.yaml"
    experiment = load(file, options.experiment, options.set)
    models, found = models_of(experiment), {}
    data = open_dataset(experiment.data)
    for model, block in models.items():
        # A model that is fitted in closed form takes no settings of an optimizer or of a training.
        steps = ["optimizer=null", "training=null"] if block["kind"] == "linear" else []
        alone = load(file, options.experiment, [*options.set, f"model={json.dumps(block)}", *steps])
        found[model] = tuned(alone, model, data, options.trials, options.state)
    rows = [["", "GAP@20", "mAP", "CPU seconds"]]
    rows += [[model, spread(of["gaps"]), spread(of["maps"]), f"{of['cpu']:.0f}"] for model, of in found.items()]
    print(f"| {' | '.join(rows[0])} |\n{'|---' * len(rows[0])}|")
    print("".join(f"| {' | '.join(row)} |\n" for row in rows[1:]))
    notes = [f"{model}: epoch {one['epoch']}, {one['settings']}" for model, one in found.items()]
    notes.append(f"{describe_seconds(time.monotonic() - started)}, without the runs that had finished before")
    title = f"{options.experiment}: {options.trials} trials on one seed for every model, then {len(SEEDS)} seeds"
    show("compare", title, rows, notes, {"experiment": experiment.name, "trials": options.trials, "models": found})


def models_of(experiment: Experiment) -> dict[str, Any]:
    """The blocks of the models that an experiment chooses between, by their labels.

    Raises:
        ConfigError: the experiment has only one model.
    """
    model = experiment.space.tree.entries["model"]
    if distributions.distribution_of(model) != "choice":
        raise ConfigError(f"{experiment.name}: model must be a choice of several models to compare")
    return {label: option.plain() for label, option in distributions.options(model).items()}


def tuned(experiment: Experiment, model: str, data: Dataset, trials: int, state: Path) -> Found:
    """Tune one model, which is the only one of `experiment`, and score its best settings."""
    space, tuning = experiment.space, held_out(data, 1.0)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3))
    study.enqueue_trial(space.defaults())
    runs: list[Found] = []
    for number in range(trials):
        asked = study.ask()
        values = space.optuna(asked)
        found = once(state, tune, experiment.trial_config(values), tuning, SEEDS[0])
        gap, epoch = max((gap, -epoch) for epoch, gap in enumerate(found["gaps"], start=1))
        runs.append({"gap": gap, "epoch": -epoch, "values": values, "cpu": found["cpu"]})
        study.tell(asked, gap)
        print(
            f"{model} trial {number}: {gap:.4f} held out, epoch {-epoch}, {found['cpu']:.0f} s of CPU  "
            f"{shown(space.settings(values))}",
            flush=True,
        )
    best = max(runs, key=lambda run: run["gap"])
    scores = []
    for seed in SEEDS:
        scores.append(once(state, score, experiment.trial_config(best["values"]), data, seed, best["epoch"]))
        print(f"{model} seed {seed}: GAP {scores[-1]['gap']:.4f}, mAP {scores[-1]['map']:.4f}", flush=True)
    return {
        "gaps": [one["gap"] for one in scores],
        "maps": [one["map"] for one in scores],
        "held_out": best["gap"],
        "epoch": best["epoch"],
        "settings": shown(space.settings(best["values"])),
        "cpu": sum(one["cpu"] for one in runs + scores),
    }


def once(state: Path, measure: Callable[..., Found], trial: TrialConfig, data: Dataset, *others: int) -> Found:
    """The result of `measure(trial, data, *others)` and its CPU seconds: read from its file, or measured now."""
    shaped_by = json.dumps([trial.settings, data.fingerprint, *others], sort_keys=True)
    path = state / f"{hashlib.sha256(shaped_by.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        began = time.process_time()
        found = {**measure(trial, data, *others), "cpu": time.process_time() - began, "settings": trial.settings}
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(found))
    kept: Found = json.loads(path.read_text())
    return kept


def tune(trial: TrialConfig, data: Dataset, seed: int) -> Found:
    """The GAP on the held-out videos after every epoch, until PATIENCE epochs bring no gain."""
    gaps: list[float] = []
    for progress in train(trial, data, device=CPU, seed=seed):
        gaps.append(progress.metrics["gap"])
        if len(gaps) - 1 - gaps.index(max(gaps)) == PATIENCE:
            break
    return {"gaps": gaps}


def score(trial: TrialConfig, data: Dataset, seed: int, epochs: int) -> Found:
    """GAP and mAP on the validation videos after `epochs` epochs."""
    *_, last = islice(train(trial, data, device=CPU, seed=seed), epochs)
    assert isinstance(last.state, TrainingState), "only supervised experiments have a choice of models"
    scores, _ = scorecard.score(last.state.scored, data.validate, trial.training.precision, CPU)
    return {"gap": scores["gap"], "map": scores["map_all"]}


def shown(settings: dict[str, Any]) -> str:
    """The searched settings in one line."""
    rounded = {path: f"{value:.4g}" if isinstance(value, float) else value for path, value in settings.items()}
    return "  ".join(f"{path}={value}" for path, value in rounded.items())


if __name__ == "__main__":
    sys.exit(main(run))
