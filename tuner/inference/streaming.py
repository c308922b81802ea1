"""Score shards one after the other: while a shard is scored, the next one is decoded.

So the number of shards does not change how much memory is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `--help` needs no torch
    import torch

    from data.batches import Batches
    from data.tfrecord.shards import DecodedShard
    from tuner.export.loader import ExportedModel

BATCH_SIZE = 1024  # videos


def decoded_shards(shards: Sequence[str], exported: ExportedModel) -> Iterator[DecodedShard]:
    """Decode one shard after the other; a thread decodes the next shard while the caller uses the current one.

    The features are rounded as those that the model was trained on.

    Raises:
        ShardError: a shard is damaged or does not fit the model.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        coming = thread.submit(_decode, shards[0], exported)
        for following in shards[1:]:
            shard = coming.result()
            coming = thread.submit(_decode, following, exported)
            yield shard
        yield coming.result()


def _decode(path: str, exported: ExportedModel) -> DecodedShard:
    import numpy as np

    from data.frames import decode
    from data.tfrecord.shards import decode_shard

    shard = decode(path, exported.schema, require_labels=False)
    if exported.schema.level != "video":
        return shard
    with np.errstate(over="ignore"):  # an overflow is reported below
        # The cache rounds features in the same way for training and evaluation.
        features_ND = shard.features_ND.astype(exported.dtype)
    if not np.isfinite(features_ND).all():
        # Decoding into an array of this type fails with an error that names the record and the value.
        decode_shard(path, exported.schema, require_labels=False, out=features_ND)
    return replace(shard, features_ND=features_ND)


def batches_of(shard: DecodedShard, exported: ExportedModel, batch_size: int, device: torch.device) -> Batches:
    """Batches of a shard's videos, in order.

    A batch has at most `batch_size` videos, and fewer if their frames would take too much memory.
    """
    from data.batches import Batches
    from tuner.training.evaluation import batch_size_of

    batch_size = min(batch_size, batch_size_of(exported.schema))
    return Batches(shard, batch_size=batch_size, shuffle=False, device=device)
