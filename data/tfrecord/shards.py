"""Whole shards of videos as arrays.

`decode_shard` decodes the records that have the usual layout all at once (data/tfrecord/lockstep.py) and every other
record on its own with protobuf (data/tfrecord/examples.py). Both give the same values; protobuf's side also finds out
what is wrong with a record.

Shapes   N videos of the shard   V labels of all of them   D columns of features
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import ShardError
from data.schema import Schema
from data.tfrecord import lockstep
from data.tfrecord.examples import Example, example_of, type_of
from data.tfrecord.framing import Integers, Records, content_hash, gather, load_records
from data.tfrecord.lockstep import Context

Ragged = tuple[NDArray[np.int64], NDArray[np.int32]]  # offsets [N + 1], and indices sorted within each row


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedShard:
    """The videos of one shard (at segment level: the segments) as arrays."""

    ids: NDArray[np.bytes_]  # [N], zero-padded to the longest
    features_ND: NDArray[Any]  # float32, or the float16 or float32 array given as `out`; frames: uint8 [F, D]
    label_offsets: NDArray[np.int64]  # [N + 1]: the labels of video n are label_indices[offsets[n]:offsets[n + 1]]
    label_indices: NDArray[np.int32]  # sorted, without repetition within a video
    content_hash: str  # of the records' stored CRCs in order: the same for a copy, plain or gzip, under any name
    # Of frames only (data/frames.py): the frames of row n are features_ND[frame_offsets[n]:frame_offsets[n + 1]].
    frame_offsets: NDArray[np.int64] | None = None
    # Of segments only: the classes that were rated for each segment, laid out as the labels are.
    rated_offsets: NDArray[np.int64] | None = None
    rated_indices: NDArray[np.int32] | None = None

    @property
    def fingerprint(self) -> str:
        """The name of the content, so that data/batches.py takes a shard where it takes a cache."""
        return self.content_hash


def decode_shard(
    path: str | os.PathLike[str],
    schema: Schema,
    *,
    require_labels: bool = True,
    out: NDArray[Any] | None = None,
) -> DecodedShard:
    """Decodes all videos of a shard of tf.train.Examples.

    Args:
        path: a local path or an fsspec URL; plain or gzip. An empty file is a shard of no videos.
        schema: the features to read, in the order of their columns; other features are skipped.
        require_labels: False: a video without the key `labels` has no labels (for prediction).
        out: [N, D] float16 or float32 rows to write the features into; `count_records` gives N.

    Raises:
        UnreachableError: the file cannot be read.
        ShardError: the file is damaged; a record lacks a feature or its id, has a wrong type or
            width, a value that is not finite (or too large for `out`), or a label outside [0, num_classes).
    """
    name = os.fspath(path)
    records = load_records(name)
    features_ND = _rows_for(name, records, schema, out)
    context = _decode_in_lockstep(records, schema, require_labels, features_ND)
    ids: dict[int, bytes] = {}
    labels: dict[int, Integers] = {}
    for row in np.flatnonzero(~context.found_N).tolist():
        example = example_of(name, records, row)
        features_ND[row] = _features_of(example, schema, features_ND.dtype)
        labels[row] = example.checked_labels(schema.num_classes, require_labels)
        ids[row] = example.id
    label_offsets, label_indices = labels_of(context, labels, schema.num_classes)
    return DecodedShard(
        ids=ids_of(records, context, ids),
        features_ND=features_ND,
        label_offsets=label_offsets,
        label_indices=label_indices,
        content_hash=content_hash(records.crc_N),
    )


def labels_of(context: Context, others: Mapping[int, Integers], num_classes: int) -> Ragged:
    """Returns the labels of all records: those understood in lockstep, and the others by row."""
    found_V = context.found_N[context.row_V]
    rows = [context.row_V[found_V], *(np.full(len(labels), row) for row, labels in others.items())]
    labels = [context.label_V[found_V], *others.values()]
    return ragged(np.concatenate(rows), np.concatenate(labels), len(context.found_N), num_classes)


def ids_of(records: Records, context: Context, others: Mapping[int, bytes]) -> NDArray[np.bytes_]:
    """Returns the ids of all records: those understood in lockstep, and the others by row."""
    size_N = np.where(context.found_N, context.id.size_N, 0)
    width = int(size_N.max(initial=1))
    ids = gather(records.buffer, f"S{width}", np.where(context.found_N, context.id.start_N, 0))
    for size in np.unique(size_N[size_N < width]):
        ids[size_N == size] = ids[size_N == size].astype(f"S{size}") if size else b""
    if others:
        ids = ids.astype(f"S{max(width, *map(len, others.values()))}")
        ids[list(others)] = list(others.values())
    return ids


def ragged(row_V: Integers, label_V: Integers, num_rows: int, num_classes: int) -> Ragged:
    """Sorts labels, given in any order and possibly repeated, into offsets and indices.

    Args:
        row_V: the row of each label.
        label_V: the label, in [0, num_classes).
        num_rows: N.
        num_classes: the number of classes.

    Returns:
        int64 offsets [N + 1] and int32 indices, sorted and without repetition within each row.
    """
    labels = np.sort(row_V * num_classes + label_V)
    labels = labels[np.append(True, labels[1:] > labels[:-1])[: len(labels)]]
    offsets = np.searchsorted(labels, np.arange(num_rows + 1) * num_classes).astype(np.int64)
    return offsets, (labels % num_classes).astype(np.int32)


def _rows_for(name: str, records: Records, schema: Schema, out: NDArray[Any] | None) -> NDArray[Any]:
    """Returns the [N, D] array to write the features into: `out`, checked, or a new one."""
    if out is None:
        return np.empty((len(records), schema.width), np.float32)
    if out.ndim != 2 or out.shape[1] != schema.width or out.dtype not in (np.float16, np.float32):
        raise ValueError(f"out must be [N, {schema.width}] float16 or float32, but got {out.shape} {out.dtype}")
    if len(out) != len(records):
        reason = f"holds {len(records)} records, but {len(out)} were counted: has it been changed meanwhile?"
        raise ShardError(name, reason)
    return out


def _decode_in_lockstep(records: Records, schema: Schema, require_labels: bool, features_ND: NDArray[Any]) -> Context:
    """Writes the features of every video that has the usual layout and no fault; the other rows are undefined."""
    buffer = records.buffer
    found_N, spans = lockstep.locate(records, lockstep.CONTEXT | dict.fromkeys(schema.features, lockstep.FLOAT_LIST))
    for key, width in schema.features.items():
        found_N &= spans[key].size_N == 4 * width
    context = lockstep.read_context(buffer, found_N, spans, schema.num_classes, require_labels)
    row_M = np.flatnonzero(found_N)
    fits_M = np.ones(len(row_M), np.bool_)
    for key, columns in schema.columns.items():
        fits_M &= lockstep.copy_floats(buffer, spans[key].start_N[row_M], row_M, features_ND[:, columns])
    found_N[row_M] = fits_M
    return context


def _features_of(example: Example, schema: Schema, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Returns the features of one record side by side.

    Raises:
        ShardError: a feature is missing or has another type or width, or a value does not fit into `dtype`.
    """
    return np.concatenate([_feature(example, key, width, dtype) for key, width in schema.features.items()])


def _feature(example: Example, key: str, width: int, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    values = example.values(key)
    if values is None:
        if lists := ", ".join(map(repr, sorted(example.feature_lists))):
            reason = f"is missing: this is a SequenceExample (feature lists {lists}), but video-level Examples are due"
            raise example.error(reason, key)
        others = ", ".join(map(repr, sorted(example.features))) or "no feature at all"
        raise example.error(f"is missing; the record holds {others}", key)
    if isinstance(values, list) or values.dtype != np.float32:
        raise example.error(f"holds {type_of(values)}, but the schema says float32", key)
    if len(values) != width:
        raise example.error(f"has {len(values)} values, but the schema says {width}", key)
    limit = float(np.finfo(dtype).max)
    if not (fits := np.abs(values) <= limit).all():
        at = int(fits.argmin())
        if np.isfinite(values[at]):
            raise example.error(f"value {at} is {values[at]:g}, beyond what {dtype} holds ({limit:g})", key)
        raise example.error(f"value {at} is {values[at]}, but features must be finite", key)
    return values.astype(np.float32, copy=False)
