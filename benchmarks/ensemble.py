"""Compare an ensemble of five fused MLPs with its best member, on real videos.

    python benchmarks/ensemble.py [--data DIR] [--storage DIR]

The five models of ensemble.yaml are trained one after the other, without Ray, as the trials of one search; a finished
trial is not trained again. Then the ensemble is exported, as `python -m tuner.best --ensemble 5 --export` does it,
loaded from its folder, and scored on `validate/`.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from card import show

from data.batches import Batches
from tuner.cli import main
from tuner.config.experiment import Experiment, load
from tuner.export import ensemble
from tuner.export.checkpoints import discard_training_states
from tuner.export.loader import load_model
from tuner.export.writer import export_model
from tuner.storage import journal, searches
from tuner.storage.journal import Journal
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.evaluation import evaluate
from tuner.training.pipelines import train

HERE = Path(__file__).resolve().parent
MEMBERS = (  # on seeds 1 to 5
    {"model.dropout": 0.5, "model.variance_power": 0.0},
    {"model.dropout": 0.6, "model.variance_power": 1.0},
    {"model.dropout": 0.7, "model.variance_power": 2.0},
    {"model.dropout": 0.6, "model.variance_power": 2.0},
    {"model.dropout": 0.7, "model.variance_power": 3.0},
)
CPU = torch.device("cpu")


def run(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/ensemble.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "yt8m", metavar="DIR")
    parser.add_argument("--storage", type=Path, default=HERE.parent / "storage" / "ensemble", metavar="DIR")
    options = parser.parse_args(arguments)
    os.environ["YT8M_SMALL_DIR"] = str(options.data.resolve())
    experiment = load(HERE / "ensemble.yaml", "ensemble")
    data = open_dataset(experiment.data)
    directory = options.storage / experiment.name / "members"
    search_without_ray(directory, experiment, data)

    search, started = journal.read(directory), time.monotonic()
    wanted = ensemble.EnsembleOptions(count=len(MEMBERS))
    assembled = ensemble.assemble(directory, experiment, search, wanted, print)
    seconds = time.monotonic() - started
    folder = options.storage / "export"
    whole = {"search_directory": directory, "experiment": experiment, "search": search, "class_names": None}
    export_model(folder, assembled.to_export(experiment), **whole)
    loaded = load_model(folder, CPU)
    gap = evaluate(loaded.model, Batches(loaded.open(experiment.data.validate), batch_size=1024, shuffle=False))["gap"]
    gaps = [scores["validate"]["gap"] for scores in assembled.member_scores]
    weights = {f"trial {m.trial.number}": w for m, w in zip(assembled.members, assembled.weights, strict=True)}
    rows = [["", "weight", "GAP@20 on validate"]]
    rows += [[name, f"{weight:.3f}", f"{one:.4f}"] for (name, weight), one in zip(weights.items(), gaps, strict=True)]
    rows.append(["ensemble, from its folder", "", f"{gap:.4f}"])
    gain = gap - max(gaps)
    notes = [f"{gain:+.4f} over the best member", *assembled.describe()[-2:]]
    notes.append(f"{seconds:.0f} s to choose the weights and score all")
    weighting = assembled.weighting
    assert weighting is not None
    honest = {"gap_cross_fitted": weighting.gap_cross_fitted, "gap_equal": weighting.gap_equal}
    report = {"gaps": gaps, "weights": weights, "gap": gap, "gain": gain, **honest, "seconds": round(seconds)}
    show("ensemble", f"{len(gaps)} fused MLPs as one model, {data.validate.num_videos:,} videos", rows, notes, report)


def search_without_ray(directory: Path, experiment: Experiment, data: Dataset) -> None:
    """Train the members that are not trained yet, and write the journal as the driver of a search does."""
    open_journal = Journal(directory)
    if not searches.exists(directory):
        (directory / "experiment.yaml").write_text(experiment.to_yaml())
        open_journal.append(
            "search",
            version=journal.VERSION,
            id=directory.name,
            experiment=experiment.name,
            fingerprint=data.fingerprint,
            planned=len(MEMBERS),
            tracking_uri="",
            overrides=[],
            baseline=0.0,
        )
    for number, values in enumerate(MEMBERS):
        id = f"member-{number}"
        if id not in open_journal.search.trials:
            states: dict[str, Any] = {"sampler_state": {}, "study_state": {}}
            settings = experiment.space.settings(values)
            open_journal.append("suggested", number=number, id=id, values=values, settings=settings, **states)
        if open_journal.search.trials[id].status == "finished":
            continue
        trial, started = experiment.trial_config(values), time.monotonic()
        for progress in train(trial, data, device=CPU, seed=trial.seed(number)):
            progress.state.save(directory / "trials" / id / f"epoch-{progress.epoch:04d}", trial)
            open_journal.append("report", id=id, epoch=progress.epoch, metrics=progress.metrics)
            seconds = time.monotonic() - started
            print(f"{id} epoch {progress.epoch}: GAP {progress.metrics['gap']:.4f}, {seconds:.0f} s", flush=True)
        open_journal.append("finished", id=id, stopped_by=None)
        discard_training_states(directory, open_journal.search.trials[id])
    open_journal.close()


if __name__ == "__main__":
    sys.exit(main(run))
