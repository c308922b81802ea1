"""Embed the videos of shards with the encoder of an exported model, and write a parquet file.

    id         string               id of the video; bytes that are not UTF-8 are written in hexadecimal digits
    embedding  list of H float32    the input of the model's output layer

The file has one row for each video, in the order of shards and records. Its metadata name the `experiment`, the
`search` and the id of the `trial` that the encoder comes from.

Shapes   N videos of a shard   B videos in the batch   H units of the embedding
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow.parquet import ParquetWriter

from models import FusedEncoder
from tuner.errors import ModelFolderError
from tuner.export.loader import ExportedModel
from tuner.inference.streaming import BATCH_SIZE, batches_of, decoded_blocks
from tuner.training.contrastive.embeddings import embedded

# The largest number of videos in a row group, which is the least that a reader takes into memory at once: 80 MB if
# H = 1200. A smaller shard is one row group.
ROW_GROUP = 16384


def embed(
    exported: ExportedModel, shards: Iterable[str], *, device: torch.device, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
    """Embed the videos of one shard after the other. Labels in the shards are ignored.

    Args:
        exported: the model, on `device`.
        shards: paths or URLs of the shards.
        device: where the videos are embedded.
        batch_size: number of videos that are embedded at once.

    Yields:
        For each block of a shard: the ids of its videos and their embeddings [N, H].

    Raises:
        ModelFolderError: the model has no encoder.
        ShardError: a shard is damaged or does not fit the model.
    """
    encoder = encoder_of(exported)
    for shard in decoded_blocks(shards, exported):
        embeddings_NH = np.empty((len(shard.ids), encoder.width), np.float32)
        first = 0
        batches = batches_of(shard, exported, batch_size, device)
        for embeddings_BH, batch in embedded(encoder, batches, exported.precision):
            rows = slice(first, first := first + len(batch.rows))
            embeddings_NH[rows] = embeddings_BH.float().cpu().numpy()
        yield shard.ids.tolist(), embeddings_NH


def encoder_of(exported: ExportedModel) -> FusedEncoder:
    """The part of the model that gives embeddings.

    Raises:
        ModelFolderError: the model has no such part.
    """
    encoder = getattr(exported.model, "encoder", None)
    if not isinstance(encoder, FusedEncoder):
        raise ModelFolderError(
            f"a model of kind {exported.config['model']['kind']} has no encoder to embed videos with: "
            "export a trial of a fused_mlp, supervised or contrastive, and give its folder"
        )
    return encoder


class EmbeddingWriter:
    """Writes embeddings to an open parquet file, one shard after the other."""

    def __init__(self, writer: ParquetWriter, schema: pa.Schema) -> None:
        """Use `embedding_writer` to open a file."""
        self._writer, self._schema = writer, schema

    def write(self, ids: Sequence[bytes], embeddings_NH: NDArray[np.float32]) -> None:
        """Append the embeddings [N, H] of the videos `ids`; they are not copied."""
        if not ids:
            return
        names = [id.decode(errors="backslashreplace") for id in ids]  # parquet cannot store surrogates
        values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_NH.ravel()), embeddings_NH.shape[1])
        table = pa.Table.from_arrays([pa.array(names, pa.string()), values], schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP)


@contextmanager
def embedding_writer(path: Path, exported: ExportedModel) -> Iterator[EmbeddingWriter]:
    """Open a parquet file for the embeddings of a model.

    Raises:
        ModelFolderError: the model has no encoder.
    """
    config = exported.config
    schema = pa.schema(
        {"id": pa.string(), "embedding": pa.list_(pa.float32(), encoder_of(exported).width)},
        metadata={"experiment": config["experiment"], "search": config["search"], "trial": config["trial"]["id"]},
    )
    # The values hardly repeat, so a dictionary only costs time. With the first, second, ... bytes of all values stored
    # together they take a sixth less space, and values that bf16 rounded two thirds less.
    encoding = {"use_dictionary": False, "use_byte_stream_split": ["embedding.list.element"], "compression": "zstd"}
    # A file that Python opened: its errors have the same words as those of all other files.
    with path.open("wb") as file, ParquetWriter(file, schema, **encoding) as writer:
        yield EmbeddingWriter(writer, schema)
