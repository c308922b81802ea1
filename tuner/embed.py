"""Write the embedding of every video to a parquet file, with the encoder of an exported model.

    python -m tuner.embed MODEL_DIR --data 'GLOB' --output embeddings.parquet

tuner/inference/embed.py describes the columns of the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.places import check_output
from tuner.cli import add_batch_size, add_data, add_device, add_model, choose_device, main
from tuner.errors import TunerError
from tuner.inference.streaming import BATCH_SIZE
from tuner.storage.local import replacing
from tuner.storage.stores import place

SUFFIX = ".parquet"


def run(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        ModelFolderError: MODEL_DIR cannot be read, or its model has no encoder.
        DataError: no shard matches, or a shard is damaged or does not fit the model.
        TunerError: the output cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.embed",
        description="Write the embedding of every video, by the encoder of an exported model.",
    )
    add_model(parser)
    add_data(parser, "shards, with or without labels")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=f"a {SUFFIX} file")
    add_batch_size(parser, BATCH_SIZE)
    add_device(parser)
    options = parser.parse_args(arguments)
    if options.output.suffix != SUFFIX:
        raise TunerError(f"--output must end in {SUFFIX}, the format of embeddings, but got {options.output}")
    check_output(options.output)

    from data.cache.recipe import find_shards
    from tuner.export.loader import load_model
    from tuner.inference.embed import embed, embedding_writer
    from tuner.inference.progress import WrittenShards

    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device).with_keys(options.keys)
    shards = find_shards(options.data)
    with (
        replacing(options.output) as unfinished,
        embedding_writer(unfinished, exported) as writer,
        WrittenShards(options.output, len(shards)) as written,
    ):
        for ids, embeddings_NH in embed(
            exported, written.counted(shards), device=device, batch_size=options.batch_size
        ):
            writer.write(ids, embeddings_NH)
            written.add(len(ids))
    written.print_speed()


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
