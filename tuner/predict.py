"""Write the best classes of every video, as an exported model predicts them.

    python -m tuner.predict MODEL_DIR --data 'GLOB' --output predictions.csv [--top-k 20]

The format of the output follows from its name: .csv and .csv.gz are Kaggle's format of 2017 and 2018
(tuner/inference/predict.py); a .safetensors file holds the best 50 classes of each video, for another model to learn
from (tuner/training/teacher.py).

With `--names`, the csv is for people: a row for each prediction, with the name of the class.

With `--segments`, a model of frames writes the best five-second segments of every class instead, in Kaggle's format of
2019 (tuner/inference/segments.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data.places import check_output
from data.ranges import COUNT
from tuner.cli import add_batch_size, add_data, add_device, add_model, choose_device, main
from tuner.errors import ModelFolderError, TunerError
from tuner.inference import segments
from tuner.inference.predictions import TOP_K
from tuner.inference.streaming import BATCH_SIZE
from tuner.storage.local import replacing
from tuner.storage.stores import place
from tuner.training import teacher, vocabulary

if TYPE_CHECKING:  # `--help` needs no torch
    from tuner.inference.predict import PredictedShard
    from tuner.inference.progress import WrittenShards


def run(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        ModelFolderError: MODEL_DIR cannot be read, or has not what --segments (frames) or --names (names) needs.
        ConfigError: the list of classes cannot be read.
        DataError: no shard matches, or a shard is damaged or does not fit the model.
        TunerError: the output cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.predict", description="Write the best classes of every video, by an exported model."
    )
    add_model(parser)
    add_data(parser, "shards, with or without labels")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="a .csv, a compressed .csv.gz, or a .safetensors file for another model to learn from",
    )
    parser.add_argument(
        "--top-k",
        type=COUNT.whole,
        metavar="K",
        help=f"classes for each video; default: {TOP_K}, or {teacher.TOP_K} in a .safetensors file",
    )
    parser.add_argument(
        "--names", action="store_true", help="write a row for each prediction, with the name of its class"
    )
    add_batch_size(parser, BATCH_SIZE)
    add_device(parser)
    ranked = parser.add_argument_group("segments")
    ranked.add_argument(
        "--segments", action="store_true", help="write the best five-second segments of each class, as in 2019"
    )
    ranked.add_argument(
        "--classes", metavar="FILE", help="a csv whose column Index lists the classes to rank; default: all classes"
    )
    ranked.add_argument(
        "--per-class",
        type=COUNT.whole,
        metavar="N",
        help=f"largest number of segments for each class; default: {segments.PER_CLASS:,}",
    )
    options = parser.parse_args(arguments)
    for_teaching = options.output.suffix == teacher.SUFFIX
    if not options.output.name.endswith((".csv", ".csv.gz", teacher.SUFFIX)):
        raise TunerError(f"--output must end in .csv, .csv.gz or {teacher.SUFFIX}, but got {options.output}")
    if options.segments and (for_teaching or options.top_k):
        parser.error("--segments writes a csv of segments for each class: it takes neither --top-k nor .safetensors")
    if options.names and (for_teaching or options.segments):
        parser.error("--names writes a csv of classes for each video: it takes neither --segments nor .safetensors")
    for name in ("classes", "per_class"):
        if getattr(options, name) and not options.segments:
            parser.error(f"--{name.replace('_', '-')} needs --segments")
    check_output(options.output)

    from data.cache.recipe import find_shards
    from tuner.export.loader import load_model
    from tuner.inference.predict import predict, write_csv, write_teacher
    from tuner.inference.progress import WrittenShards

    device, batch_size = choose_device(options.device), options.batch_size
    exported = load_model(place(options.model, "MODEL_DIR"), device).with_keys(options.keys)
    if options.names and exported.class_names is None:
        raise ModelFolderError(
            f"--names: {options.model} has no classes.csv, because its experiment names no data.vocabulary: "
            "omit --names, or export the model of an experiment that does"
        )
    shards = find_shards(options.data)
    with replacing(options.output) as unfinished, WrittenShards(options.output, len(shards)) as written:
        counted = written.counted(shards)
        if options.segments:
            num_classes = exported.schema.num_classes
            listed = vocabulary.read_indices(options.classes, num_classes) if options.classes else range(num_classes)
            ranking = segments.Ranking(listed, options.per_class or segments.PER_CLASS)
            for number in segments.rank_segments(exported, counted, ranking, device=device, batch_size=batch_size):
                written.add(number)
            segments.write(unfinished, ranking)
        else:
            top_k = options.top_k or (teacher.TOP_K if for_teaching else TOP_K)
            predicted = _counted(predict(exported, counted, device=device, top_k=top_k, batch_size=batch_size), written)
            if for_teaching:
                write_teacher(unfinished, predicted, exported)
            else:
                write_csv(unfinished, predicted, exported.class_names if options.names else None)
    written.print_speed("segments" if options.segments else "videos")


def _counted(shards: Iterable[PredictedShard], written: WrittenShards) -> Iterator[PredictedShard]:
    for shard in shards:
        yield shard
        written.add(len(shard.ids))  # the next shard is requested when this one is written


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
