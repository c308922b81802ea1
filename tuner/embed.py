"""Shards -> a parquet file of the embedding of every video, by the encoder of an exported model.

    python -m tuner.embed MODEL_DIR --data 'GLOB' --output embeddings.parquet

    id         string               of the video; what is not UTF-8 in it is written in hexadecimal digits
    embedding  list of H float32    what the model's output layer stands on

One row a video, in the order of shards and records. Shards are decoded one after the other, the next one while the
encoder works on the last, and written one after the other, so their number does not matter; labels in them are not
looked at. Where the encoder comes from stands in the file's metadata: `experiment`, `search`, and `trial`, its id.

Shapes   N videos of a shard   H units of the embedding
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli import add_batch_size, add_data, add_device, add_model, choose_device, main
from tuner.errors import ModelFolderError, TunerError
from tuner.inference.streaming import BATCH_SIZE, Count, batches_of, decoded
from tuner.storage.local import replacing

if TYPE_CHECKING:  # `--help` needs no torch
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from models import FusedEncoder
    from tuner.export.loader import ExportedModel

SUFFIX = ".parquet"
# Videos of a row group, the least that a reader has to take into memory at once: 80 MB of H = 1200. A shard of fewer
# videos is a row group of its own.
ROW_GROUP = 16384


def embed(
    exported: ExportedModel, shards: Sequence[str], *, device: torch.device, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
    """The ids and the embeddings_NH of one shard after the other.

    Raises:
        ModelFolderError: the model has no encoder.
        ShardError: a shard is damaged or does not fit the model.
    """
    import numpy as np

    from tuner.training.contrastive.embeddings import embedded

    encoder = encoder_of(exported)
    for shard in decoded(shards, exported):
        embeddings_NH = np.empty((len(shard.ids), encoder.width), np.float32)
        first = 0
        batches = batches_of(shard, exported, batch_size, device)
        for embeddings_BH, batch in embedded(encoder, batches, exported.precision):
            rows = slice(first, first := first + len(batch.rows))
            embeddings_NH[rows] = embeddings_BH.float().cpu().numpy()
        yield shard.ids.tolist(), embeddings_NH


def encoder_of(exported: ExportedModel) -> FusedEncoder:
    """The part of the model that makes embeddings.

    Raises:
        ModelFolderError: it has none.
    """
    from models import FusedEncoder

    encoder = getattr(exported.model, "encoder", None)
    if not isinstance(encoder, FusedEncoder):
        raise ModelFolderError(
            f"a model of kind {exported.config['model']['kind']} has no encoder to embed videos with: "
            "export a trial of a fused_mlp, supervised or contrastive, and give its folder"
        )
    return encoder


def schema(exported: ExportedModel) -> pa.Schema:
    """The columns of the file, and where the encoder comes from.

    Raises:
        ModelFolderError: the model has no encoder.
    """
    import pyarrow as pa

    config = exported.config
    return pa.schema(
        {"id": pa.string(), "embedding": pa.list_(pa.float32(), encoder_of(exported).width)},
        metadata={"experiment": config["experiment"], "search": config["search"], "trial": config["trial"]["id"]},
    )


def _table(ids: Sequence[bytes], embeddings_NH: NDArray[np.float32], columns: pa.Schema) -> pa.Table:
    """Without a copy of the embeddings."""
    import pyarrow as pa

    names = [id.decode(errors="backslashreplace") for id in ids]  # parquet holds no surrogates
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_NH.ravel()), embeddings_NH.shape[1])
    return pa.Table.from_arrays([pa.array(names, pa.string()), values], schema=columns)


def run(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ModelFolderError: MODEL_DIR cannot be used, or its model has no encoder.
        DataError: no shard matches, or one is damaged or does not fit the model.
        TunerError: the output cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.embed",
        description="Write the embedding of every video by the encoder of an exported model.",
    )
    add_model(parser)
    add_data(parser, "shards; labels are not needed")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=SUFFIX)
    add_batch_size(parser, BATCH_SIZE)
    add_device(parser)
    options = parser.parse_args(arguments)
    if options.output.suffix != SUFFIX:
        raise TunerError(f"--output must end in {SUFFIX}, which is what embeddings are written as: {options.output}")

    from pyarrow.parquet import ParquetWriter

    from data.cache.store import find_shards
    from tuner.export.loader import load_model
    from tuner.storage.stores import place

    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device)
    columns_of_file = schema(exported)
    shards = find_shards(options.data)
    # Of numbers that hardly repeat, a dictionary only costs; split into first, second, ... bytes they take a sixth less
    # room than plain, and those that bf16 rounded, two thirds.
    encoding = {"use_dictionary": False, "use_byte_stream_split": ["embedding.list.element"], "compression": "zstd"}
    with (
        replacing(options.output) as unfinished,
        unfinished.open("wb") as file,  # Python's own, which says what went wrong in the same words everywhere
        ParquetWriter(file, columns_of_file, **encoding) as writer,
        Count(options.output, len(shards)) as count,
    ):
        for ids, embeddings_NH in embed(exported, shards, device=device, batch_size=options.batch_size):
            if ids:
                writer.write_table(_table(ids, embeddings_NH, columns_of_file), row_group_size=ROW_GROUP)
            count.shard(len(ids))
    count.say()


if __name__ == "__main__":
    sys.exit(main(run))
