"""Score an exported model, or a file of predictions, on shards with labels.

    python -m tuner.evaluate MODEL_DIR --data 'GLOB'

The output explains each metric; its last line is one JSON object with the metrics. With `--json`, this line is all that
stdout gets, and the rest goes to stderr.

`--classes FILE.csv` writes the scores of each class (tuner/inference/scorecard.py). `--predictions FILE` compares a
file of predictions (Kaggle's format of 2017 and 2018, tuner/inference/predictions.py) with the model; the exit code is
1 if they differ by more than rounding. Without MODEL_DIR, the file alone is scored; a file of ranked segments (Kaggle's
format of 2019, tuner/inference/segments.py) is scored by MAP at 100,000.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TextIO

from data.places import check_output
from data.ranges import Range
from tuner.cli import add_data, add_device, add_model, choose_device, main
from tuner.errors import ConfigError
from tuner.inference.meanings import explained
from tuner.storage.local import replacing
from tuner.storage.stores import place

# The largest difference of a stored probability from the model's: above the rounding to the six digits of a csv, and
# above the difference of float32 sums in another order.
TOLERANCE = 1e-4


def run(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if the predictions in a file differ from the model's.

    Raises:
        ConfigError: the file of predictions cannot be read, or does not fit the model or the shards.
        ModelFolderError: MODEL_DIR cannot be read.
        DataError: no shard matches, they contain no video, or a shard is damaged or does not fit the model.
    """
    parser = argparse.ArgumentParser(prog="python -m tuner.evaluate", description="Score an exported model on shards.")
    add_model(parser, optional=True)
    add_data(parser, "shards with labels")
    add_device(parser)
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="a csv that tuner.predict wrote, to compare with the model; without MODEL_DIR, the file alone is scored",
    )
    parser.add_argument("--classes", type=Path, metavar="FILE.csv", help="write the scores of each class to this file")
    parser.add_argument(
        "--tolerance",
        type=Range(0, 1, "high").number,
        default=TOLERANCE,
        metavar="P",
        help="largest difference of two probabilities that counts as equal; default: %(default)g",
    )
    parser.add_argument("--json", action="store_true", help="write only the JSON object to stdout, the rest to stderr")
    options = parser.parse_args(arguments)
    if options.model is None and options.predictions is None:
        parser.error("give MODEL_DIR, or --predictions FILE to score a file alone")
    if options.model is None and options.classes is not None:
        parser.error("--classes needs a model: give MODEL_DIR")
    if options.classes is not None:
        check_output(options.classes)
    return _score_model(options) if options.model is not None else _score_file(options)


def _score_file(options: argparse.Namespace) -> int:
    """Score a file of predictions or of ranked segments, without a model."""
    from data.cache.recipe import find_shards
    from tuner.console.activity import saying
    from tuner.inference import predictions, segments

    if segments.is_segments(options.predictions):
        ranked = segments.read(options.predictions)
        with saying("reading the ratings of the shards"):
            metrics = segments.score(ranked, segments.ratings_of(find_shards(options.data), dict(options.keys)))
    else:
        stored = predictions.read(options.predictions)
        with saying("reading the labels of the shards"):
            labels = predictions.labels_of(find_shards(options.data), dict(options.keys))
        _refuse_no_videos(len(labels.ids), options.data)
        metrics = predictions.score(stored, labels)
    print(explained(metrics), file=_text(options))
    print(json.dumps(metrics))
    return 0


def _score_model(options: argparse.Namespace) -> int:
    """Score a model, and compare a file of predictions with it."""
    from rich.console import Console

    from data.batches import Batches
    from data.cache.bar import build_bar
    from tuner.console.activity import saying
    from tuner.export.loader import load_model
    from tuner.inference import comparison, predictions, scorecard, segments
    from tuner.training.evaluation import batch_size_of

    stored = None
    if options.predictions is not None:
        if segments.is_segments(options.predictions):
            raise ConfigError(f"{options.predictions}: ranked segments are scored without a model: omit MODEL_DIR")
        stored = predictions.read(options.predictions)
    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device).with_keys(options.keys)
    with build_bar(Console(stderr=True)) as show:
        cache = exported.open(options.data, show)
    _refuse_no_videos(cache.num_videos, options.data)
    for sentence in cache.remarks():
        print(sentence, file=sys.stderr)
    with saying(f"scoring {cache.num_videos:,} videos"):
        metrics, classes = scorecard.score(exported.model, cache, exported.precision, device)
    print(explained(metrics), file=_text(options))
    if options.classes is not None:
        with replacing(options.classes) as unfinished:
            unfinished.write_text(scorecard.as_csv(classes, exported.class_names), encoding="utf-8")
    if stored is None:
        print(json.dumps(metrics))
        return 0
    batches = Batches(cache, batch_size=batch_size_of(cache.schema), shuffle=False, device=device)
    with saying("comparing the predictions"):
        compared = comparison.compare(stored, exported, cache, batches, options.tolerance)
        scores = predictions.score(stored, cache)
    print("\n".join(comparison.describe(options.predictions, compared, options.tolerance)), file=_text(options))
    print(f"  GAP of the file {scores['gap']:.6f}, of the model {metrics['gap']:.6f}", file=_text(options))
    differences = {
        "largest_difference": compared.largest[0].size,
        "differing": compared.differing,
        "missing": len(compared.missing),
        "unknown": len(compared.unknown),
    }
    print(json.dumps({**metrics, "predictions": {**scores, **differences}}))
    return 0 if compared.agrees else 1


def _refuse_no_videos(num_videos: int, patterns: list[str]) -> None:
    from data.errors import NoShardsError

    if not num_videos:
        raise NoShardsError(f"{' '.join(patterns)}: the shards contain no video")


def _text(options: argparse.Namespace) -> TextIO:
    """Where the text for people goes."""
    return sys.stderr if options.json else sys.stdout


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
