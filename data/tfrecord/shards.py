"""TFRecord shards: framing, CRCs, and the video-level records in them as arrays.

A shard is a sequence of frames, plain or as one gzip stream, local or behind any fsspec URL:

    uint64 length | uint32 masked CRC32C of the length | length bytes: a tf.train.Example | uint32 masked CRC32C of them

(tensorflow/core/lib/io/record_writer.h; little-endian.) Both CRCs of every record are checked, whatever is read of it.

There are two ways through the bytes. `read_examples` is general and reads a record at a time. `decode_shard` scans the
frames, takes the records that have the usual layout all at once (data/tfrecord/lockstep.py), and hands every other
record, and
every damaged file, to the general way: it gives the same values and finds the words for what is wrong.

Shapes   N videos in the shard   M those found in lockstep   V labels of all of them   D columns of features
"""

import gzip
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, Final, cast

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from data import remote
from data.errors import ShardError
from data.schema import ID_KEYS, LABELS_KEY, Schema
from data.tfrecord.lockstep import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    SLACK,
    Places,
    copy_floats,
    gather,
    locate,
    read_varints,
)
from data.tfrecord.wire import Values, WireError, parse_record

_HEADER: Final = struct.Struct("<QI")
_LENGTH: Final = struct.Struct("<Q")  # what the header starts with
_FOOTER: Final = struct.Struct("<I")
Ragged = tuple[NDArray[np.int64], NDArray[np.int32]]  # offsets [N + 1], and indices sorted within each row

_PIECE: Final = 1 << 24  # read at most this at once, so that a forged length claims no memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One record, as it is stored: a tf.train.Example, or a SequenceExample if it has feature lists."""

    path: str
    offset: int  # byte at which its frame starts
    features: dict[str, Values]  # bytes, float32 or int64 by name; the context, for a SequenceExample
    feature_lists: dict[str, list[Values]]  # values of every step by name

    @property
    def id(self) -> bytes:
        """The video's id, under the first of ID_KEYS that is there.

        Raises:
            ShardError: there is none, or it is not one non-empty bytes value.
        """
        key = next((key for key in ID_KEYS if key in self.features), None)
        if key is None:
            raise self.error(f"is missing (no {' or '.join(map(repr, ID_KEYS))})", ID_KEYS[0])
        values = self.features[key]
        if not isinstance(values, list):
            raise self.error(f"holds {type_of(values)}, but an id is bytes", key)
        if len(values) != 1 or not values[0]:
            raise self.error(f"holds {len(values)} values, but one is due" if len(values) != 1 else "is empty", key)
        if values[0].endswith(b"\0"):
            raise self.error("ends with a zero byte, which no id does", key)
        return values[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels as they are stored: any order, repeated ones too.

        Raises:
            ShardError: the key is missing, or holds no integers.
        """
        if LABELS_KEY not in self.features:
            raise self.error("is missing", LABELS_KEY)
        values = self.features[LABELS_KEY]
        if isinstance(values, list) or values.dtype != np.int64:
            raise self.error(f"holds {type_of(values)}, but labels are int64", LABELS_KEY)
        return cast(NDArray[np.int64], values)

    def checked_labels(self, num_classes: int, required: bool = True) -> NDArray[np.int64]:
        """The labels as they are stored; none where the key is missing and not required.

        Raises:
            ShardError: as `labels`, and for a label outside [0, num_classes).
        """
        labels = self.labels if required or LABELS_KEY in self.features else np.empty(0, np.int64)
        self.check_classes(labels, num_classes, LABELS_KEY)
        return labels

    def check_classes(self, labels: NDArray[np.int64], num_classes: int, key: str) -> None:
        """Raises ShardError if a label is no class."""
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise self.error(f"holds the label {wrong}, outside the classes [0, {num_classes})", key)

    def error(self, reason: str, key: str | None = None) -> ShardError:
        """What is wrong with this record, as an exception to raise."""
        return ShardError(self.path, reason, self.offset, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedShard:
    """The videos of one shard as arrays."""

    ids: NDArray[np.bytes_]  # [N], zero-padded to the longest
    features_ND: NDArray[Any]  # float32, or the float16 or float32 array given as `out`; frames: uint8 [F, D]
    label_offsets: NDArray[np.int64]  # [N + 1]: the labels of video n are label_indices[offsets[n]:offsets[n + 1]]
    label_indices: NDArray[np.int32]  # sorted, without repetition within a video
    content_hash: str  # of the records' stored CRCs in order: the same for a copy, plain or gzip, under any name
    # Of frames only (data/frames.py): the frames of row n are features_ND[frame_offsets[n]:frame_offsets[n + 1]].
    frame_offsets: NDArray[np.int64] | None = None
    # Of segments only: the classes that were rated for each, as the labels.
    rated_offsets: NDArray[np.int64] | None = None
    rated_indices: NDArray[np.int32] | None = None

    @property
    def fingerprint(self) -> str:
        """So that a shard can be fed in batches as a cache is (data/batches.py)."""
        return self.content_hash


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Every record of a shard, in order, with no schema.

    Raises:
        ShardError: the file cannot be read, is no TFRecord file, is damaged or cut short, or holds something else than
            tf.train.Example and SequenceExample records.
    """
    name = os.fspath(path)
    for offset, data in read_records(name):
        yield _parse(name, offset, data)


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Every record's offset and bytes, both CRCs checked; streams, so that a file of any size will do.

    Raises:
        ShardError: the file cannot be read, is no TFRecord file, is damaged or cut short.
    """
    name = os.fspath(path)
    offset: int | None = None
    try:
        with _open(name) as stream:
            offset = 0
            while header := _read(stream, _HEADER.size):
                length = _check_header(name, offset, header)
                data = _read(stream, length)
                footer = _read(stream, _FOOTER.size)
                if len(footer) < _FOOTER.size:
                    got = _HEADER.size + len(data) + len(footer)
                    raise ShardError(name, f"is cut short: {_frame(length)} bytes are due, {got} are there", offset)
                if _FOOTER.unpack(footer)[0] != _mask(crc32c(data)):
                    raise ShardError(name, "is damaged: its data does not match its CRC", offset)
                yield offset, data
                offset += _frame(length)
    except remote.errors(OSError, EOFError, zlib.error, ValueError, ImportError) as error:
        # EOFError and zlib.error: gzip. ValueError and ImportError: fsspec knows no such protocol.
        raise ShardError(name, f"cannot be read: {_words(error)}", offset) from error


def count_records(path: str | os.PathLike[str]) -> int:
    """Number of records, from the frames' headers alone: the data in between is skipped where that is possible.

    Raises:
        ShardError: as read_records, for what the headers show.
    """
    name = os.fspath(path)
    if "://" in name or not os.path.isfile(name):
        return sum(1 for _ in read_records(name))
    with open(name, "rb", buffering=0) as file:
        if _is_gzip(file.read(_HEADER.size)):
            return sum(1 for _ in read_records(name))
        count, offset, size = 0, 0, os.fstat(file.fileno()).st_size
        while offset < size:
            file.seek(offset)
            length = _check_header(name, offset, file.read(_HEADER.size))
            if _frame(length) > size - offset:
                reason = f"is cut short: {_frame(length)} bytes are due, {size - offset} are there"
                raise ShardError(name, reason, offset)
            offset += _frame(length)
            count += 1
        return count


def decode_shard(
    path: str | os.PathLike[str],
    schema: Schema,
    *,
    require_labels: bool = True,
    out: NDArray[Any] | None = None,
) -> DecodedShard:
    """All videos of a shard of tf.train.Examples.

    Args:
        path: a local path or a fsspec URL; plain or gzip. An empty file is a shard of no videos.
        schema: the features wanted, in the order of their columns; others are skipped.
        require_labels: False: a video without the key `labels` has none (for prediction).
        out: [N, D] float16 or float32 rows to write the features into; N as count_records says.

    Raises:
        ShardError: the file cannot be read or is damaged; a record lacks a feature or its id, has a wrong type or
            width, a value that is not finite (or too large for `out`), or a label outside [0, num_classes).
    """
    name = os.fspath(path)
    records = load_records(name)
    count = len(records.start_N)
    features_ND = np.empty((count, schema.width), np.float32) if out is None else _checked(name, out, count, schema)
    context = _decode_in_lockstep(records, schema, require_labels, features_ND)
    slow = {}
    for row in np.flatnonzero(~context.found_N).tolist():
        slow[row] = _decode(parse_example(name, records, row), schema, require_labels, features_ND.dtype)
        features_ND[row] = slow[row].features_D
    label_offsets, label_indices = labels_of(
        context, {row: video.labels for row, video in slow.items()}, schema.num_classes
    )
    return DecodedShard(
        ids=ids_of(records, context, {row: video.id for row, video in slow.items()}),
        features_ND=features_ND,
        label_offsets=label_offsets,
        label_indices=label_indices,
        content_hash=content_hash(records.crc_N),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A whole shard in memory (or several, one after the other), its CRCs checked."""

    blob: NDArray[np.uint8]  # and SLACK zeros after it
    start_N: NDArray[np.int64]  # of each record's data
    stop_N: NDArray[np.int64]
    crc_N: NDArray[np.uint32]  # masked, as stored


def load_records(name: str) -> Records:
    """Reads a whole shard.

    Raises:
        ShardError: as `read_records`.
    """
    if (scanned := _scanned(name)) is not None:
        records, good_N = _framed(*scanned)
        if good_N.all():
            return records
    raise _damage(name)


def load_together(names: Sequence[str]) -> tuple[Records, list[slice | None]]:
    """Reads several shards as if they were one.

    Returns:
        The records, and which of them are whose; None: the shard is damaged, and `load_records` has the words.
    """
    frames: list[_Frame] = []
    pieces: list[NDArray[np.uint8]] = []
    rows: list[slice | None] = []
    for name in names:
        if (scanned := _scanned(name)) is None:
            rows.append(None)
            continue
        blob, found = scanned
        rows.append(slice(len(frames), len(frames) + len(found)))
        frames += found
        pieces.append(blob[:-SLACK])
    records, good_N = _framed(np.concatenate([*pieces, np.zeros(SLACK, np.uint8)]), frames)
    return records, [None if span is None or not good_N[span].all() else span for span in rows]


_Frame = tuple[int, int]  # length of a record's data, and their CRC


def _scanned(name: str) -> tuple[NDArray[np.uint8], list[_Frame]] | None:
    """The decompressed shard with SLACK zeros after it, and its frames; None: it cannot be read, or is cut short."""
    try:
        blob, size = _load(name)
        return blob[: size + SLACK], _scan(blob.data, size)
    except remote.errors(OSError, EOFError, zlib.error, ValueError, ImportError):
        return None


def _scan(view: memoryview, size: int) -> list[_Frame]:
    """The frames of a shard of that size.

    Raises:
        ValueError: the last one is cut short.
    """
    unpack, header, footer = _LENGTH.unpack_from, _HEADER.size, _FOOTER.size
    at, frames = 0, []
    while at < size:
        if at + header > size:
            raise ValueError("a header is cut short")
        (length,) = unpack(view, at)
        start = at + header
        at = start + length + footer
        if at > size:
            raise ValueError("a record is cut short")
        frames.append((length, crc32c(view[start : start + length])))
    return frames


def _framed(blob: NDArray[np.uint8], frames: Sequence[_Frame]) -> tuple[Records, NDArray[np.bool_]]:
    """The records of these frames, one after the other, and whether both CRCs of each are right."""
    length_N, data_crc_N = np.array(frames, np.int64).reshape(-1, 2).T
    stop_N = np.cumsum(length_N + _frame(0)) - _FOOTER.size
    start_N = stop_N - length_N
    crc_N = gather(blob, "<u4", stop_N)
    stored_N = gather(blob, "<u4", start_N - 4)
    good_N = (stored_N == _masked(_length_crcs(length_N))) & (crc_N == _masked(data_crc_N.astype(np.uint32)))
    return Records(blob=blob, start_N=start_N, stop_N=stop_N, crc_N=crc_N), good_N


def _load(name: str) -> tuple[NDArray[np.uint8], int]:
    """The decompressed shard with SLACK zeros after it, and its size without them."""
    with _open(name) as stream:
        if isinstance(stream, io.BufferedReader):  # a plain local file: no second copy
            blob = np.empty(os.fstat(stream.fileno()).st_size + SLACK, np.uint8)
            size = stream.readinto(blob[:-SLACK].data)
            blob[size:] = 0
            return blob, size
        data = stream.read()
        return np.frombuffer(data + bytes(SLACK), np.uint8), len(data)


def _damage(name: str) -> ShardError:
    """What is wrong with the frames of a shard, in the words of the general way."""
    try:
        for _ in read_records(name):
            pass
    except ShardError as error:
        return error
    return ShardError(name, "changed while it was read")


# What must precede a record's values, by the key they have.
CONTEXT: Final = dict.fromkeys(ID_KEYS, BYTES_LIST) | {LABELS_KEY: INT64_LIST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Ids and labels of the records that were understood in lockstep."""

    found_N: NDArray[np.bool_]  # the others are for the general way; whoever finds a fault in one takes it out
    id: Places
    row_V: NDArray[np.int64]  # of every label
    label_V: NDArray[np.int64]


def read_contexts(
    blob: NDArray[np.uint8],
    found_N: NDArray[np.bool_],
    places: Mapping[str, Places],
    num_classes: int,
    require_labels: bool,
) -> Context:
    """Ids and labels from their places; takes records whose are not as they should be out of `found_N`."""
    ids = places[ID_KEYS[0]]
    for key in ID_KEYS[1:]:
        absent = np.flatnonzero(ids.size_N < 0)
        ids.start_N[absent], ids.size_N[absent] = places[key].start_N[absent], places[key].size_N[absent]
    found_N &= (ids.size_N > 0) & (blob[ids.start_N + ids.size_N - 1] != 0)
    label = places[LABELS_KEY]
    if require_labels:
        found_N &= label.size_N >= 0
    row_M = np.flatnonzero(found_N)
    list_V, label_V, sound_M = read_varints(blob, label.start_N[row_M], label.size_N[row_M].clip(0))
    sound_M[list_V[label_V >= num_classes]] = False
    found_N[row_M] = sound_M
    return Context(found_N=found_N, id=ids, row_V=row_M[list_V], label_V=label_V)


def _decode_in_lockstep(records: Records, schema: Schema, require_labels: bool, features_ND: NDArray[Any]) -> Context:
    """Writes the features of every video with the usual layout and without fault; leaves the others alone."""
    blob = records.blob
    wanted = CONTEXT | dict.fromkeys(schema.features, FLOAT_LIST)
    found_N, places = locate(blob, records.start_N, records.stop_N, wanted)
    for key, width in schema.features.items():
        found_N &= places[key].size_N == 4 * width
    context = read_contexts(blob, found_N, places, schema.num_classes, require_labels)
    row_M = np.flatnonzero(found_N)
    sound_M = np.ones(len(row_M), np.bool_)
    for key, columns in schema.columns.items():
        sound_M &= copy_floats(blob, places[key].start_N[row_M], row_M, features_ND[:, columns])
    found_N[row_M] = sound_M
    return context


def ragged(row_V: NDArray[np.int64], label_V: NDArray[np.int64], num_rows: int, num_classes: int) -> Ragged:
    """Labels in any order, repeated ones too, as offsets and sorted indices without repetition."""
    labels = np.sort(row_V * num_classes + label_V)
    labels = labels[np.append(True, labels[1:] > labels[:-1])[: len(labels)]]
    offsets = np.searchsorted(labels, np.arange(num_rows + 1) * num_classes).astype(np.int64)
    return offsets, (labels % num_classes).astype(np.int32)


def labels_of(context: Context, slow: Mapping[int, NDArray[np.int64]], num_classes: int) -> Ragged:
    """The labels of all records: those found in lockstep, and the others by row."""
    found_V = context.found_N[context.row_V]
    rows = [context.row_V[found_V], *(np.full(len(labels), row) for row, labels in slow.items())]
    labels = [context.label_V[found_V], *slow.values()]
    return ragged(np.concatenate(rows), np.concatenate(labels), len(context.found_N), num_classes)


def ids_of(records: Records, context: Context, slow: Mapping[int, bytes]) -> NDArray[np.bytes_]:
    """The ids of all records: those found in lockstep, and the others by row."""
    size_N = np.where(context.found_N, context.id.size_N, 0)
    width = int(size_N.max(initial=1))
    ids = gather(records.blob, f"S{width}", np.where(context.found_N, context.id.start_N, 0))
    for size in np.unique(size_N[size_N < width]):
        ids[size_N == size] = ids[size_N == size].astype(f"S{size}") if size else b""
    if slow:
        ids = ids.astype(f"S{max(width, *map(len, slow.values()))}")
        ids[list(slow)] = list(slow.values())
    return ids


def content_hash(crc_N: NDArray[np.uint32]) -> str:
    """Of the records' stored CRCs in order: the same for a copy, plain or gzip, under any name."""
    return hashlib.blake2b(crc_N.tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Video:
    id: bytes
    features_D: NDArray[np.float32]
    labels: NDArray[np.int64]


def _decode(example: Example, schema: Schema, require_labels: bool, dtype: np.dtype[Any]) -> _Video:
    """One record against the schema. Raises ShardError."""
    columns = [_feature(example, key, width, dtype) for key, width in schema.features.items()]
    labels = example.checked_labels(schema.num_classes, require_labels)
    return _Video(id=example.id, features_D=np.concatenate(columns), labels=labels)


def _feature(example: Example, key: str, width: int, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    if key not in example.features:
        if lists := ", ".join(map(repr, sorted(example.feature_lists))):
            reason = f"is missing: this is a SequenceExample (feature lists {lists}), but video-level Examples are due"
            raise example.error(reason, key)
        others = ", ".join(map(repr, sorted(example.features))) or "no feature at all"
        raise example.error(f"is missing; the record holds {others}", key)
    values = example.features[key]
    if isinstance(values, list) or values.dtype != np.float32:
        raise example.error(f"holds {type_of(values)}, but the schema says float32", key)
    if len(values) != width:
        raise example.error(f"has {len(values)} values, but the schema says {width}", key)
    limit = float(np.finfo(dtype).max)
    if not (holds := np.abs(values) <= limit).all():
        at = int(holds.argmin())
        if np.isfinite(values[at]):
            raise example.error(f"value {at} is {values[at]:g}, beyond what {dtype} holds ({limit:g})", key)
        raise example.error(f"value {at} is {values[at]}, but features must be finite", key)
    return cast(NDArray[np.float32], values)


def _checked(name: str, out: NDArray[Any], count: int, schema: Schema) -> NDArray[Any]:
    if out.ndim != 2 or out.shape[1] != schema.width or out.dtype not in (np.float16, np.float32):
        raise ValueError(f"out must be [N, {schema.width}] float16 or float32, but got {out.shape} {out.dtype}")
    if len(out) != count:
        raise ShardError(name, f"holds {count} records, but {len(out)} were counted: has it been changed meanwhile?")
    return out


def parse_example(name: str, records: Records, row: int, stop: int | None = None) -> Example:
    """One record by the general way; with `stop`, only what lies before that byte of the shard.

    Raises:
        ShardError: it is no tf.train.Example or SequenceExample.
    """
    start, end = int(records.start_N[row]), int(records.stop_N[row])
    return _parse(name, start - _HEADER.size, records.blob[start : stop or end].tobytes())


def _parse(name: str, offset: int, data: bytes) -> Example:
    try:
        features, feature_lists = parse_record(data)
    except WireError as error:
        raise ShardError(name, f"is no tf.train.Example: {error}", offset) from error
    return Example(path=name, offset=offset, features=features, feature_lists=feature_lists)


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    """The bytes of the frames, decompressed if they are compressed."""
    with _open_raw(name) as stream:
        head = stream.read(_HEADER.size)
        stream.seek(0)
        if not _is_gzip(head):
            yield stream
            return
        with gzip.GzipFile(fileobj=stream) as decompressed:
            yield cast(BinaryIO, decompressed)


def _open_raw(name: str) -> BinaryIO:
    if "://" not in name:
        return open(name, "rb")
    filesystem, path = remote.filesystem(name)
    return cast(BinaryIO, filesystem.open(path, "rb"))


def _is_gzip(head: bytes) -> bool:
    """By its magic bytes, unless they are the length of a record with a right CRC."""
    return head[:3] == b"\x1f\x8b\x08" and not (len(head) == _HEADER.size and _is_header(head))


def _is_header(header: bytes) -> bool:
    return bool(_HEADER.unpack(header)[1] == _mask(crc32c(header[:8])))


def _check_header(name: str, offset: int, header: bytes) -> int:
    """The length of the record's data."""
    if len(header) < _HEADER.size:
        reason = f"is cut short: its header has {_HEADER.size} bytes, {len(header)} are there"
        raise ShardError(name, reason, offset)
    if not _is_header(header):
        foreign = " (is this a TFRecord file?)" if offset == 0 else ""
        raise ShardError(name, f"is damaged: its length does not match its CRC{foreign}", offset)
    return int(_HEADER.unpack(header)[0])


def _read(stream: BinaryIO, size: int) -> bytes:
    """That many bytes, or what is left of the file."""
    pieces = []
    while size and (piece := stream.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _frame(length: int) -> int:
    return _HEADER.size + length + _FOOTER.size


def _mask(crc: int) -> int:
    """As TensorFlow masks a CRC, so that the CRC of bytes that contain CRCs stays useful (lib/hash/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def _length_crcs(length_N: NDArray[np.int64]) -> NDArray[np.uint32]:
    """CRC32C of each length as 8 bytes. It is linear: crc(a ^ b) = crc(a) ^ crc(b) ^ crc(0)."""
    octets_N8 = length_N.astype("<i8")[:, None].view(np.uint8)
    crc_N: NDArray[np.uint32] = np.bitwise_xor.reduce(_crc_tables()[np.arange(8), octets_N8], axis=1)
    return crc_N


@cache
def _crc_tables() -> NDArray[np.uint32]:
    """[8, 256] CRC of 8 bytes of which one is not zero, by its place and value, less crc(0) in all but the first."""
    alone = [[crc32c((octet << 8 * place).to_bytes(8, "little")) for octet in range(256)] for place in range(8)]
    tables = np.array(alone, np.uint32)
    tables[1:] ^= tables[0, 0]
    return tables


def _masked(crc_N: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """_mask of each."""
    rotated_N = np.bitwise_or(crc_N >> 15, crc_N << 17)
    return cast(NDArray[np.uint32], rotated_N + np.uint32(0xA282EAD8))


def type_of(values: Values | Sequence[bytes]) -> str:
    """For a sentence."""
    return "bytes" if isinstance(values, list) else str(cast(NDArray[Any], values).dtype)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
