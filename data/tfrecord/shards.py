"""Shards of videos as arrays.

`decode_videos` decodes the records that have the usual layout all at once (data/tfrecord/lockstep.py) and every other
record on its own with protobuf (data/tfrecord/examples.py). Both give the same values; protobuf's side also finds out
what is wrong with a record.

Shapes   N videos of the shard or of a block   V labels of all of them   D columns of features
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import ShardError
from data.schema import Schema
from data.tfrecord import lockstep
from data.tfrecord.examples import FLOAT_LIST, Example, example_of, type_of
from data.tfrecord.framing import Integers, Records, content_hash, gather
from data.tfrecord.lockstep import Context

Ragged = tuple[NDArray[np.int64], NDArray[np.int32]]  # offsets [N + 1], and indices sorted within each row


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedShard:
    """The videos of one shard or block (at segment level: the segments) as arrays."""

    ids: NDArray[np.bytes_]  # [N], zero-padded to the longest
    features_ND: NDArray[Any]  # float32, or the float16 or float32 array given as `out`; frames: uint8 [F, D]
    label_offsets: NDArray[np.int64]  # [N + 1]: the labels of video n are label_indices[offsets[n]:offsets[n + 1]]
    label_indices: NDArray[np.int32]  # sorted, without repetition within a video
    crc_N: NDArray[np.uint32]  # of each record that was decoded (of segments: of each record), as the shard stores it
    # Of frames only (data/frames.py): the frames of row n are features_ND[frame_offsets[n]:frame_offsets[n + 1]].
    frame_offsets: NDArray[np.int64] | None = None
    # Of segments only: the classes that were rated for each segment, laid out as the labels are.
    rated_offsets: NDArray[np.int64] | None = None
    rated_indices: NDArray[np.int32] | None = None
    bad_records: tuple[ShardError, ...] = ()  # those that were left out
    stream: None = None  # the features are here
    parts: None = None  # of all videos

    @property
    def content_hash(self) -> str:
        """Of the records in order: the same for a copy of the shard, plain or compressed, under any name."""
        return content_hash(self.crc_N)

    @property
    def fingerprint(self) -> str:
        """The name of the content, so that data/batches.py takes a shard where it takes a cache."""
        return self.content_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the records of a shard are read."""

    schema: Schema  # the features to read, in the order of their columns; other features are skipped
    require_labels: bool = True  # False: a video without labels has none (for prediction)
    dtype: Literal["float16", "float32"] = "float32"  # of the features at video level
    max_bad_records: int = 0  # bad records that are left out of a shard; with more, the shard is bad


def too_many(error: ShardError, limit: int) -> ShardError:
    """Returns, to be raised, the error about the first bad record that is one too many."""
    reason = (
        f"{error.reason}; before it {limit} other bad records were left out, the most that may be (bad_record_limit)"
    )
    return ShardError(error.path, reason, error.offset, error.key)


class BadRecords:
    """The bad records of one shard: left out while they are not too many."""

    def __init__(self, limit: int) -> None:
        """Allows that many; 0: the first one is raised."""
        self._limit = limit
        self.errors: list[ShardError] = []

    @contextmanager
    def left_out(self, row: int, rows: list[int]) -> Iterator[None]:
        """Adds `row` to `rows` where the block finds that the record of this row is bad.

        Raises:
            ShardError: the record is bad, and none may be, or too many are.
        """
        try:
            yield
        except ShardError as error:
            if not self._limit:
                raise
            if len(self.errors) == self._limit:
                raise too_many(error, self._limit) from error
            self.errors.append(error)
            rows.append(row)


def decode_videos(path: str, records: Records, reading: Reading, bad: BadRecords) -> DecodedShard:
    """Decodes the tf.train.Examples of a block.

    Raises:
        ShardError: a record lacks a feature or its id, has a wrong type or width, a value that is not finite or too
            large for the type of the features, or a label outside [0, num_classes); and it may not be left out.
    """
    known = len(bad.errors)
    features_ND = np.empty((len(records), reading.schema.width), np.float32)
    shard = _decoded(path, records, reading, bad, features_ND)
    if reading.dtype == "float32":
        return shard
    with np.errstate(over="ignore"):  # found and named below
        stored_ND = shard.features_ND.astype(np.float16)
    # A float16 with all exponent bits set is infinite; comparing integers is as fast as a copy.
    if (stored_ND.view(np.uint16) & 0x7C00 == 0x7C00).any():
        # This is rare, so the block is decoded again, now into float16: that finds the record and the key.
        del bad.errors[known:]
        return _decoded(path, records, reading, bad, np.empty((len(records), reading.schema.width), np.float16))
    return replace(shard, features_ND=stored_ND)


def _decoded(path: str, records: Records, reading: Reading, bad: BadRecords, features_ND: NDArray[Any]) -> DecodedShard:
    """Decodes a block, with its features written into `features_ND`."""
    schema, known = reading.schema, len(bad.errors)
    context = _decode_in_lockstep(records, schema, reading.require_labels, features_ND)
    ids: dict[int, bytes] = {}
    labels: dict[int, Integers] = {}
    bad_rows: list[int] = []
    for row in np.flatnonzero(~context.found_N).tolist():
        with bad.left_out(row, bad_rows):
            example = example_of(path, records, row)
            features_ND[row] = _features_of(example, schema, features_ND.dtype)
            checked = example.checked_labels(schema, reading.require_labels)
            ids[row] = example.id_under(schema.id_keys)
            labels[row] = checked
    label_offsets, label_indices = labels_of(context, labels, schema.num_classes)
    shard = DecodedShard(
        ids=ids_of(records, context, ids),
        features_ND=features_ND,
        label_offsets=label_offsets,
        label_indices=label_indices,
        crc_N=records.crc_N,
        bad_records=tuple(bad.errors[known:]),
    )
    return without(shard, bad_rows)


def without(shard: DecodedShard, rows: list[int]) -> DecodedShard:
    """Leaves out rows that have no labels and, where rows have frames, no frames."""
    if not rows:
        return shard
    kept_N = np.ones(len(shard.ids), np.bool_)
    kept_N[rows] = False

    def offsets(of_all: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.append(of_all[:-1][kept_N], of_all[-1])

    has_frames = shard.frame_offsets is not None
    return replace(
        shard,
        ids=shard.ids[kept_N],
        features_ND=shard.features_ND if has_frames else shard.features_ND[kept_N],
        frame_offsets=None if shard.frame_offsets is None else offsets(shard.frame_offsets),
        label_offsets=offsets(shard.label_offsets),
        crc_N=shard.crc_N[kept_N],
    )


def joined(blocks: Sequence[DecodedShard]) -> DecodedShard:
    """Puts the blocks of a shard together; the features of blocks from which they were taken are left out."""
    if len(blocks) == 1:
        return blocks[0]

    def offsets(name: str) -> Any:
        parts = [getattr(block, name) for block in blocks]
        if parts[0] is None:
            return None
        return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part) for part in parts]))]).astype(np.int64)

    def values(name: str) -> Any:
        parts = [getattr(block, name) for block in blocks]
        return None if parts[0] is None else np.concatenate(parts)

    whole = ("ids", "features_ND", "label_indices", "rated_indices", "crc_N")
    ragged_offsets = ("frame_offsets", "label_offsets", "rated_offsets")
    return DecodedShard(
        **{name: values(name) for name in whole},
        **{name: offsets(name) for name in ragged_offsets},
        bad_records=tuple(error for block in blocks for error in block.bad_records),
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


def _decode_in_lockstep(records: Records, schema: Schema, require_labels: bool, features_ND: NDArray[Any]) -> Context:
    """Writes the features of every video that has the usual layout and no fault; the other rows are undefined."""
    buffer = records.buffer
    keys = {name: schema.key(name) for name in schema.features}
    wanted = lockstep.context_kinds(schema) | dict.fromkeys(keys.values(), FLOAT_LIST)
    found_N, spans = lockstep.locate(records, wanted)
    for name, width in schema.features.items():
        found_N &= spans[keys[name]].size_N == 4 * width
    context = lockstep.read_context(buffer, found_N, spans, schema, require_labels)
    row_M = np.flatnonzero(found_N)
    fits_M = np.ones(len(row_M), np.bool_)
    for name, columns in schema.columns.items():
        fits_M &= lockstep.copy_floats(buffer, spans[keys[name]].start_N[row_M], row_M, features_ND[:, columns])
    found_N[row_M] = fits_M
    return context


def _features_of(example: Example, schema: Schema, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Returns the features of one record side by side.

    Raises:
        ShardError: a feature is missing or has another type or width, or a value does not fit into `dtype`.
    """
    widths = {schema.key(name): width for name, width in schema.features.items()}
    return np.concatenate([_feature(example, key, width, dtype) for key, width in widths.items()])


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
