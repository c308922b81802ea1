"""All records of a shard parsed at once: numpy takes the same step in every record, from key to key.

A writer usually gives the records of a file one layout: the same keys in the same order, each with its values as one
packed list, and every length in the fewest bytes. Then everything but the values is known in advance. The first record
(the leader) shows the order of the keys; `_head` computes the bytes that must come before each key's values; and a
record that has exactly these bytes at these offsets, and ends where they say, follows the leader. The remaining records
get a leader from among themselves, and so on. A record that follows no leader is left to protobuf
(data/tfrecord/examples.py). No input makes a function of this module raise.

benchmarks/decode.py compares this with protobuf's parser. It stays as long as it is more than twice as fast.

Shapes   N records   L those that follow no leader yet   F those that follow this leader   M rows that are written
         W width of a feature   B bytes of all lists   V integers in all lists
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.schema import LABELS_KEY, Schema
from data.tfrecord.examples import BYTES_LIST, FLOAT_LIST, INT64_LIST, varint
from data.tfrecord.framing import Bytes, Integers, Records, gather

_MAX_LEADERS = 24  # the orders of four keys; a shard of the 2018 release has three
_MAX_KEY = 255  # bytes
_MAX_LENGTH = 5  # bytes of a varint that says how long a message is
_MAX_INTEGER = 5  # bytes of a varint that is a label
_TRAILER = 0x0012  # empty feature lists, which the 2018 release has after the features
_BLOCK = 1 << 18  # bytes copied at a time: they stay in the core's cache until they are checked and written


def context_kinds(schema: Schema) -> dict[str, int]:
    """Returns the kind by key of what every record has beside its features."""
    return dict.fromkeys(schema.id_keys, BYTES_LIST) | {schema.key(LABELS_KEY): INT64_LIST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Where the values of one key lie in the buffer."""

    start_N: Integers  # -1: the record does not have the key, or follows no leader
    size_N: Integers  # bytes; -1 likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Ids and labels of the records that were understood."""

    found_N: NDArray[np.bool_]  # False: parse the record with protobuf; whoever finds a fault in a record clears it
    id: Spans
    row_V: Integers  # the row of every label
    label_V: Integers


def read_context(
    buffer: Bytes, found_N: NDArray[np.bool_], spans: Mapping[str, Spans], schema: Schema, require_labels: bool
) -> Context:
    """Reads the ids and labels of the records of `found_N`; clears it for records where they are not as they should be.

    Args:
        buffer: the shard.
        found_N: the records whose spans are known.
        spans: by key, at least those of `context_kinds`.
        schema: of the records.
        require_labels: False: a record without labels is understood as well.
    """
    ids = _id_spans([spans[key] for key in schema.id_keys])
    found_N &= (ids.size_N > 0) & (buffer[ids.start_N + ids.size_N - 1] != 0)
    label = spans[schema.key(LABELS_KEY)]
    if require_labels:
        found_N &= label.size_N >= 0
    row_M = np.flatnonzero(found_N)
    list_V, label_V, sound_M = _read_varints(buffer, label.start_N[row_M], label.size_N[row_M].clip(0))
    sound_M[list_V[label_V >= schema.num_classes]] = False
    found_N[row_M] = sound_M
    return Context(found_N=found_N, id=ids, row_V=row_M[list_V], label_V=label_V)


def _id_spans(keys: Sequence[Spans]) -> Spans:
    """Returns the spans of the first key that each record has."""
    ids, *others = keys
    for other in others:
        absent = np.flatnonzero(ids.size_N < 0)
        ids.start_N[absent], ids.size_N[absent] = other.start_N[absent], other.size_N[absent]
    return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One entry of the records' map of features: the bytes before its values."""

    key: str
    kind: int
    heads: NDArray[np.bytes_]  # of a short list one for each size from 0 to 255, else the only possible one
    size: int  # bytes of the values; -1: a short list, whose head ends with its size


def locate(records: Records, wanted: Mapping[str, int]) -> tuple[NDArray[np.bool_], dict[str, Spans]]:
    """Finds the values of the wanted keys in records that are tf.train.Examples.

    Args:
        records: the shard.
        wanted: kind by key; a record in which a wanted key has another kind is not found.

    Returns:
        Which records were understood as a whole, and the spans by key.
    """
    buffer, stop_N = records.buffer, records.stop_N
    entries_N, end_N, is_message_N = messages(buffer, records.start_N, 0x0A)
    has_trailer_N = (end_N == stop_N - 2) & (gather(buffer, "<u2", stop_N - 2) == _TRAILER)
    rest_L = np.flatnonzero(is_message_N & ((end_N == stop_N) | has_trailer_N))
    return locate_entries(buffer, rest_L, entries_N, end_N, wanted)


def locate_entries(
    buffer: Bytes, rest_L: Integers, entries_N: Integers, end_N: Integers, wanted: Mapping[str, int]
) -> tuple[NDArray[np.bool_], dict[str, Spans]]:
    """Finds the values of the wanted keys, where each record's Features message is known.

    Args:
        buffer: the shard.
        rest_L: the records to look at.
        entries_N: offset of the first entry of each record's Features.
        end_N: offset of the byte after the last entry.
        wanted: kind by key; a record in which a wanted key has another kind is not found.

    Returns:
        Which records follow a leader, and the spans by key.
    """
    found_N = np.zeros(len(entries_N), np.bool_)
    nowhere = np.full((len(wanted), 2, len(entries_N)), -1)
    spans = {key: Spans(start_N=start_N, size_N=size_N) for key, (start_N, size_N) in zip(wanted, nowhere, strict=True)}
    for _ in range(_MAX_LEADERS):
        if not len(rest_L):
            break
        layout = _layout(buffer[entries_N[rest_L[0]] : end_N[rest_L[0]]].tobytes(), wanted)
        if layout is None:
            rest_L = rest_L[1:]
            continue
        follows_L, values = _follow(layout, buffer, entries_N[rest_L], end_N[rest_L])
        follower_F = np.flatnonzero(follows_L)
        row_F = rest_L[follower_F]
        found_N[row_F] = True
        for entry, (at_L, size_L) in zip(layout, values, strict=True):
            if entry.key in spans:
                spans[entry.key].start_N[row_F] = at_L[follower_F]
                spans[entry.key].size_N[row_F] = size_L if isinstance(size_L, int) else size_L[follower_F]
            elif entry.kind == INT64_LIST:  # nobody reads these integers, but protobuf refuses a record of broken ones
                size_F = np.broadcast_to(size_L, at_L.shape)[follower_F]
                found_N[row_F] &= _read_varints(buffer, at_L[follower_F], size_F)[2]
        if len(row_F) == len(rest_L):
            break
        rest_L = rest_L[~follows_L]
    return found_N, spans


def messages(buffer: Bytes, start_N: Integers, tag: int) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Reads the tag and the length of the message at each offset.

    Returns:
        The offset of the message's first byte, the offset of the byte after it, and whether it has this tag.
    """
    word_N = gather(buffer, "<i8", start_N)
    more_N = is_message_N = word_N & 0xFF == tag
    at_N, size_N = start_N + 1, np.zeros(len(start_N), np.int64)
    for position in range(_MAX_LENGTH):
        word_N = word_N >> 8
        size_N = size_N + ((word_N & 0x7F) << 7 * position) * more_N
        at_N = at_N + more_N
        more_N = more_N & (word_N & 0x80 != 0)
        if not more_N.any():
            break
    return at_N, at_N + size_N, is_message_N & ~more_N


def _layout(entries: bytes, wanted: Mapping[str, int]) -> list[_Entry] | None:
    """Returns the layout of one record's entries; None where it is not of the usual kind."""
    layout: dict[str, _Entry] = {}
    at = 0
    try:
        while at < len(entries):
            start = at
            _, at = _read_varint(entries, at + 1)  # size of the entry
            length, at = _read_varint(entries, at + 1)
            key, at = entries[at : at + length], at + length
            _, at = _read_varint(entries, at + 1)  # size of its Feature
            kind = entries[at]
            _, at = _read_varint(entries, at + 1)  # size of the list of that kind
            size, at = _read_varint(entries, at + 1)
            # The tags were skipped and the sizes not compared: now compare with the only bytes that are possible.
            if kind not in (BYTES_LIST, FLOAT_LIST, INT64_LIST) or entries[start:at] != _head(key, kind, size):
                return None
            name = key.decode()
            if name in layout or len(key) > _MAX_KEY or kind != wanted.get(name, kind):
                return None
            layout[name] = _entry(key, kind, size)
            at += size
    except (IndexError, UnicodeDecodeError):
        return None
    return list(layout.values()) if at == len(entries) else None


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Reads the base-128 integer at an offset.

    Returns:
        The integer and the offset after it.

    Raises:
        IndexError: the message ends before the integer does, or the integer is longer than any length of a message.
    """
    value = 0
    for position in range(_MAX_LENGTH):
        octet = message[at + position]
        value |= (octet & 0x7F) << 7 * position
        if octet < 0x80:
            return value, at + position + 1
    raise IndexError("an integer of too many bytes")


@lru_cache(maxsize=1024)
def _entry(key: bytes, kind: int, size: int) -> _Entry:
    width = len(_head(key, kind, size))
    if kind == FLOAT_LIST or size > 0x7F or len(_head(key, kind, 0)) != width:
        return _Entry(key=key.decode(), kind=kind, heads=np.array([_head(key, kind, size)]), size=size)
    # A short list: its size takes one byte as long as the head does not grow. No record has the head b"".
    heads = [_head(key, kind, n) for n in range(256)]
    return _Entry(key=key.decode(), kind=kind, heads=np.array([h if len(h) == width else b"" for h in heads]), size=-1)


def _follow(
    layout: list[_Entry], buffer: Bytes, at_L: Integers, end_L: Integers
) -> tuple[NDArray[np.bool_], list[tuple[Integers, Integers | int]]]:
    """Compares records with a layout, byte for byte.

    Returns:
        [L] which records have it, and for each entry the offsets and sizes of the values.
    """
    follows_L = np.ones(len(at_L), np.bool_)
    values: list[tuple[Integers, Integers | int]] = []
    for entry in layout:
        # numpy ignores trailing zeros of both sides, which have the same width, so equal means equal byte for byte.
        head_L = gather(buffer, entry.heads.dtype, at_L)
        at_L = at_L + entry.heads.itemsize
        size_L: Integers | int = entry.size
        if entry.size < 0:
            size_L = gather(buffer, np.uint8, at_L - 1).astype(np.int64)
            follows_L &= head_L == entry.heads[size_L]
        else:
            follows_L &= head_L == entry.heads
        values.append((at_L, size_L))
        at_L = at_L + size_L
    # Offsets only grow, so a record whose last offset is its end was never read beyond it.
    return follows_L & (at_L == end_L), values


def copy_floats(buffer: Bytes, start_N: Integers, rows_N: Integers, columns_MW: NDArray[Any]) -> NDArray[np.bool_]:
    """Copies W floats from each offset into a row of some columns of the output.

    Returns:
        [N] whether every value of the row is finite, and no larger than the columns' type holds; other rows are zeros.
    """
    width = columns_MW.shape[1]
    block_rows = max(1, _BLOCK // (4 * width))
    limit = np.finfo(columns_MW.dtype).max
    fits_N = np.ones(len(rows_N), np.bool_)
    for block in (slice(start, start + block_rows) for start in range(0, len(rows_N), block_rows)):
        values = gather(buffer, f"V{4 * width}", start_N[block]).view("<f4").reshape(-1, width)
        if not (-limit <= values.min() and values.max() <= limit):  # min() of a NaN is NaN, and compares as False
            fits_N[block] = (np.abs(values) <= limit).all(axis=1)
            values = np.where(fits_N[block, None], values, 0)
        columns_MW[_span(rows_N[block])] = values
    return fits_N


def copy_bytes(buffer: Bytes, start_N: Integers, rows_N: Integers, columns_MW: Bytes) -> None:
    """Copies W bytes from each offset into a row of some columns of the output."""
    width = columns_MW.shape[1]
    block_rows = max(1, _BLOCK // width)
    for block in (slice(start, start + block_rows) for start in range(0, len(rows_N), block_rows)):
        values = gather(buffer, f"V{width}", start_N[block]).view(np.uint8).reshape(-1, width)
        columns_MW[_span(rows_N[block])] = values


def _span(rows_N: Integers) -> slice | Integers:
    """Returns ascending rows as a slice where they have no gap, since numpy writes to a slice twice as fast."""
    return slice(rows_N[0], rows_N[-1] + 1) if rows_N[-1] - rows_N[0] == len(rows_N) - 1 else rows_N


def _read_varints(buffer: Bytes, start_N: Integers, size_N: Integers) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Reads the integers of N packed lists.

    An integer of more than five bytes makes its list unsound: no class is that large, and protobuf reads its value.

    Returns:
        [V] the list that each integer is in, [V] its value, and [N] whether the list is sound.
    """
    stop_N = np.cumsum(size_N)
    total = int(stop_N[-1]) if len(stop_N) else 0
    if not total:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.ones(len(size_N), np.bool_)
    list_B = np.repeat(np.arange(len(size_N)), size_N)
    octet_B = buffer[np.arange(total) + (start_N - stop_N + size_N)[list_B]]
    last_B = octet_B < 0x80
    end_N = stop_N[size_N > 0] - 1
    sound_N = np.ones(len(size_N), np.bool_)
    sound_N[list_B[end_N]] = last_B[end_N]
    last_B[end_N] = True  # so that an unsound list does not reach into the next one
    end_V = np.flatnonzero(last_B)
    length_V = end_V + 1
    length_V[1:] -= length_V[:-1].copy()
    list_V = list_B[end_V]
    longest = int(length_V.max())
    if longest > _MAX_INTEGER:
        sound_N[list_V[length_V > _MAX_INTEGER]] = False
    value_V = octet_B[end_V] & np.int64(0x7F)
    for position in range(1, min(longest, _MAX_INTEGER)):  # from the most significant byte, the last, to the first
        longer = np.flatnonzero(length_V > position)
        value_V[longer] = value_V[longer] << 7 | octet_B[end_V[longer] - position] & 0x7F
    return list_V, value_V, sound_N


@lru_cache(maxsize=4096)
def _head(key: bytes, kind: int, size: int) -> bytes:
    """Returns the bytes from an entry of a Features message to its values: the tags and lengths of five messages."""
    before = b"\n" + varint(size)
    before = bytes([kind]) + varint(len(before) + size) + before
    before = b"\n" + varint(len(key)) + key + b"\x12" + varint(len(before) + size) + before
    return b"\n" + varint(len(before) + size) + before
