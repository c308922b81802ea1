"""Model + batches -> metrics.

    python -m tuner.evaluate MODEL_DIR --data 'GLOB'

scores an exported model; its last line is one JSON object with the metrics. With `--predictions FILE` (Kaggle's format
of 2017 and 2018, tuner/inference/predictions.py) it says how far the file is from what the model says, and ends with
exit code 1
where that is more than rounding. Without MODEL_DIR it scores the file alone, one of ranked segments (Kaggle's format of
2019, tuner/inference/segments.py) by MAP at 100,000. `--classes FILE.csv` writes the classes one by one
(tuner/inference/scorecard.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tuner.cli import add_data, add_device, add_model, choose_device, main
from tuner.errors import ConfigError

# How far a stored probability may be from the model's: the six digits of a csv and float32 in another order are less.
TOLERANCE = 1e-4


def run(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit code: 1 where stored predictions are not what the model says.

    Raises:
        ConfigError: the stored predictions cannot be read, or have nothing to do with the model or the shards.
        ModelFolderError: MODEL_DIR cannot be used.
        DataError: no shard matches, they hold no video, or one is damaged or does not fit the model.
    """
    parser = argparse.ArgumentParser(prog="python -m tuner.evaluate", description="Score an exported model on shards.")
    add_model(parser, optional=True)
    add_data(parser, "shards with labels")
    add_device(parser)
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="a csv as tuner.predict writes it: compare it with the model"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE.csv", help="write every class's scores there")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="P", help="of a probability; default: %(default)g"
    )
    options = parser.parse_args(arguments)
    if options.model is None and options.predictions is None:
        parser.error("give MODEL_DIR, or --predictions FILE to score a file alone")
    if options.model is None and options.classes is not None:
        parser.error("--classes are scored with a model: give MODEL_DIR")
    if not 0 <= options.tolerance < 1:
        parser.error(f"--tolerance is a difference of probabilities, from 0 to below 1, but got {options.tolerance:g}")
    return _of_file(options) if options.model is None else _of_model(options)


def _of_file(options: argparse.Namespace) -> int:
    """Score stored predictions alone."""
    from data.cache.store import find_shards
    from data.errors import NoShardsError
    from tuner.inference import predictions, segments

    if segments.is_segments(options.predictions):
        return _of_segments(options)
    stored = predictions.read(options.predictions)
    labels = predictions.labels_of(find_shards(options.data))
    if not len(labels.ids):
        raise NoShardsError(f"{' '.join(options.data)}: the shards hold no video")
    metrics = predictions.score(stored, labels)
    _show(metrics)
    print(json.dumps(metrics))
    return 0


def _of_segments(options: argparse.Namespace) -> int:
    """Score ranked segments."""
    from data.cache.store import find_shards
    from models.metrics.segments import map_at_k
    from tuner.inference import segments

    ranked = segments.read(options.predictions)
    ratings = segments.ratings_of(find_shards(options.data))
    positives = [sum(rated.values()) for rated in ratings.values()]
    metrics = {
        "map_at_k": map_at_k(ranked, ratings, segments.MOST),
        "num_classes": float(sum(count > 0 for count in positives)),
        "num_positives": float(sum(positives)),
        "num_rated": float(sum(map(len, ratings.values()))),
    }
    _show(metrics)
    print(json.dumps(metrics))
    return 0


def _of_model(options: argparse.Namespace) -> int:
    """Score a model, and compare stored predictions with it."""
    from rich.console import Console
    from rich.progress import Progress

    from data.batches import Batches
    from data.errors import NoShardsError
    from tuner.export.loader import load_model
    from tuner.inference import scorecard
    from tuner.storage.stores import place
    from tuner.training.evaluation import batch_size_of

    stored = None
    if options.predictions is not None:
        from tuner.inference import predictions, segments

        if segments.is_segments(options.predictions):
            raise ConfigError(f"{options.predictions}: ranked segments are scored alone: leave MODEL_DIR out")
        stored = predictions.read(options.predictions)
    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device)
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("decoding shards", total=None)
        cache = exported.open(
            options.data, lambda progress: bar.update(task, completed=progress.shards_done, total=progress.shards_total)
        )
    if cache.num_videos == 0:
        raise NoShardsError(f"{' '.join(options.data)}: the shards hold no video")
    metrics, classes = scorecard.score(exported.model, cache, exported.precision, device)
    if options.classes is not None:
        options.classes.write_text(scorecard.as_csv(classes, exported.class_names), encoding="utf-8")
    _show(metrics)
    if stored is None:
        print(json.dumps(metrics))
        return 0
    batches = Batches(cache, batch_size=batch_size_of(cache.schema), shuffle=False, device=device)
    comparison = predictions.compare(stored, exported, cache, batches, options.tolerance)
    scores = predictions.score(stored, cache)
    print("\n".join(predictions.describe(options.predictions, comparison, options.tolerance)))
    print(f"  its GAP {scores['gap']:.6f}, the model's {metrics['gap']:.6f}")
    found = {
        "largest_difference": comparison.largest[0].size,
        "differing": comparison.differing,
        "missing": len(comparison.missing),
        "unknown": len(comparison.unknown),
    }
    print(json.dumps({**metrics, "predictions": {**scores, **found}}))
    return 0 if comparison.agrees else 1


def _show(metrics: Mapping[str, float]) -> None:
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:,.6g}")


if __name__ == "__main__":
    sys.exit(main(run))
