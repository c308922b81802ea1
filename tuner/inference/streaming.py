"""Score shards block by block: while a block of records is scored, the next one is decoded.

So neither the number of shards nor their size changes how much memory is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `--help` needs no torch
    import torch

    from data.batches import Batches
    from data.tfrecord.shards import DecodedShard
    from tuner.export.loader import ExportedModel

BATCH_SIZE = 1024  # videos


def decoded_blocks(shards: Iterable[str], exported: ExportedModel) -> Iterator[DecodedShard]:
    """Decode one block of records after the other; a thread decodes the next one while the caller uses the current one.

    The features are rounded as those that the model was trained on.

    Raises:
        ShardError: a shard is damaged or does not fit the model.
    """
    from data.frames import decode_blocks
    from data.tfrecord.shards import Reading

    reading = Reading(schema=exported.schema, require_labels=False, dtype=exported.dtype)
    blocks = chain.from_iterable(decode_blocks(shard, reading) for shard in shards)
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


def batches_of(shard: DecodedShard, exported: ExportedModel, batch_size: int, device: torch.device) -> Batches:
    """Batches of a shard's videos, in order.

    A batch has at most `batch_size` videos, and fewer if their frames would take too much memory.
    """
    from data.batches import Batches
    from tuner.training.evaluation import batch_size_of

    batch_size = min(batch_size, batch_size_of(exported.schema))
    return Batches(shard, batch_size=batch_size, shuffle=False, device=device)
