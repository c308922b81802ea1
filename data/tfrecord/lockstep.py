"""All records of a shard parsed at once: numpy takes the same step in every record, from key to key.

Writers give the records of a file one layout: the same keys in the same order, each with its values as one packed
list, every length written in the fewest bytes. Then everything but the values is known beforehand. The first record
(the leader) says in which order the keys come; `head` writes down the bytes that must precede each key's values; and a
record that has exactly these bytes in their places, and ends where they say, follows the leader. The rest is tried
again with a leader of its own, and what follows no leader is left to data/tfrecord/wire.py. No data makes anything
here raise.

`blob` is the shard as uint8, with at least SLACK bytes after the last frame, so that a look ahead stays inside of it.

Shapes   N records   L those of them that are still to be found   F those that follow a leader   M rows of the output
         W width of a feature   B bytes of all lists   V integers in all lists
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data.tfrecord.wire import WireError, read_varint

SLACK: Final = 512  # more than a head, the longest look ahead
BYTES_LIST, FLOAT_LIST, INT64_LIST = 0x0A, 0x12, 0x1A  # tags of the kinds of a Feature

_MAX_LEADERS = 24  # the orders of four keys; the 2018 release has three in a shard
_MAX_KEY = 255
_MAX_LENGTH = 5  # bytes that say how long a message is
_TRAILER = 0x0012  # after the features, in the 2018 release: empty feature lists
_BLOCK = 1 << 18  # bytes copied at once: they stay in the core's cache until they are checked and written

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the values of one key lie in the blob."""

    start_N: Integers  # -1: the record does not have the key, or follows no leader
    size_N: Integers  # bytes; -1 likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One entry of the records' map: its head, with the places in it that count the bytes of the values."""

    key: str
    kind: int
    heads: NDArray[np.bytes_]  # as they must be: of a short list one for each size from 0 to 255, else the only one
    size: int  # of the values; of a short list -1: the last byte of the head says it


def locate(
    blob: Bytes, start_N: Integers, stop_N: Integers, wanted: Mapping[str, int]
) -> tuple[NDArray[np.bool_], dict[str, Places]]:
    """Finds the values of the wanted keys.

    Args:
        blob: the shard.
        start_N: first byte of each record's message.
        stop_N: the byte after it.
        wanted: kind by key; a record in which a wanted key has another kind is not found.

    Returns:
        The records that were understood as a whole, and the places by key.
    """
    sound_N, entries_N, end_N = _envelopes(blob, start_N, stop_N)
    return locate_entries(blob, np.flatnonzero(sound_N), entries_N, end_N, wanted)


def locate_entries(
    blob: Bytes, rest_L: Integers, entries_N: Integers, end_N: Integers, wanted: Mapping[str, int]
) -> tuple[NDArray[np.bool_], dict[str, Places]]:
    """The same, where the message's envelope is known.

    Args:
        blob: the shard.
        rest_L: the records to look at.
        entries_N: first byte of the features' entries.
        end_N: the byte after them.
        wanted: kind by key.
    """
    found_N = np.zeros(len(entries_N), np.bool_)
    nowhere = np.full((len(wanted), 2, len(entries_N)), -1)
    places = {
        key: Places(start_N=start_N, size_N=size_N) for key, (start_N, size_N) in zip(wanted, nowhere, strict=True)
    }
    for _ in range(_MAX_LEADERS):
        if not len(rest_L):
            break
        steps = _layout(blob[entries_N[rest_L[0]] : end_N[rest_L[0]]].tobytes(), wanted)
        if steps is None:
            rest_L = rest_L[1:]
            continue
        follows_L, steps_places = _follow(steps, blob, entries_N[rest_L], end_N[rest_L])
        follower_F = np.flatnonzero(follows_L)
        row_F = rest_L[follower_F]
        found_N[row_F] = True
        for step, (at_L, size_L) in zip(steps, steps_places, strict=True):
            if step.key in places:
                places[step.key].start_N[row_F] = at_L[follower_F]
                places[step.key].size_N[row_F] = size_L if isinstance(size_L, int) else size_L[follower_F]
        if len(row_F) == len(rest_L):
            break
        rest_L = rest_L[~follows_L]
    return found_N, places


def _envelopes(blob: Bytes, start_N: Integers, stop_N: Integers) -> tuple[NDArray[np.bool_], Integers, Integers]:
    """Where the entries start and end: a record is one message (field 1), which may have a trailer."""
    at_N, end_N, sound_N = messages(blob, start_N, 0x0A)
    trailed_N = (end_N == stop_N - 2) & (gather(blob, "<u2", stop_N - 2) == _TRAILER)
    return sound_N & ((end_N == stop_N) | trailed_N), at_N, end_N


def messages(blob: Bytes, start_N: Integers, tag: int) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """First byte of the message that has this tag at each start, the byte after it, and whether there is one."""
    word_N = gather(blob, "<i8", start_N)
    more_N = sound_N = word_N & 0xFF == tag
    at_N, size_N = start_N + 1, np.zeros(len(start_N), np.int64)
    for place in range(_MAX_LENGTH):
        word_N = word_N >> 8
        size_N = size_N + ((word_N & 0x7F) << 7 * place) * more_N
        at_N = at_N + more_N
        more_N = more_N & (word_N & 0x80 != 0)
        if not more_N.any():
            break
    return at_N, at_N + size_N, sound_N & ~more_N


def _layout(entries: bytes, wanted: Mapping[str, int]) -> list[_Step] | None:
    """Those of one record; None: it is not of the usual kind."""
    steps: dict[str, _Step] = {}
    at = 0
    try:
        while at < len(entries):
            start = at
            _, at = read_varint(entries, at + 1)  # the entry
            length, at = read_varint(entries, at + 1)
            key, at = entries[at : at + length], at + length
            _, at = read_varint(entries, at + 1)  # its Feature
            kind = entries[at]
            _, at = read_varint(entries, at + 1)  # the list of that kind
            size, at = read_varint(entries, at + 1)
            # What was read loosely is compared strictly: with the only bytes that it can be.
            if kind not in (BYTES_LIST, FLOAT_LIST, INT64_LIST) or entries[start:at] != head(key, kind, size):
                return None
            name = key.decode()
            if name in steps or len(key) > _MAX_KEY or kind != wanted.get(name, kind):
                return None
            steps[name] = _step(key, kind, size)
            at += size
    except (WireError, IndexError, UnicodeDecodeError):
        return None
    return list(steps.values()) if at == len(entries) else None


@lru_cache(maxsize=1024)
def _step(key: bytes, kind: int, size: int) -> _Step:
    width = len(head(key, kind, size))
    if kind == FLOAT_LIST or size > 0x7F or len(head(key, kind, 0)) != width:
        return _Step(key=key.decode(), kind=kind, heads=np.array([head(key, kind, size)]), size=size)
    # Short: every length takes one byte, for as long as the head does not grow. No record has the head b"".
    heads = [head(key, kind, n) for n in range(256)]
    return _Step(key=key.decode(), kind=kind, heads=np.array([h if len(h) == width else b"" for h in heads]), size=-1)


def _follow(
    steps: list[_Step], blob: Bytes, at_L: Integers, end_L: Integers
) -> tuple[NDArray[np.bool_], list[tuple[Integers, Integers | int]]]:
    """The records that are laid out like this, byte for byte; start and size of their values at each step."""
    follows_L = np.ones(len(at_L), np.bool_)
    places: list[tuple[Integers, Integers | int]] = []
    for step in steps:
        head_L = gather(blob, step.heads.dtype, at_L)  # numpy ignores zeros at the end of both: of the same width, so
        at_L = at_L + step.heads.itemsize  # that they are equal only byte for byte
        size_L: Integers | int = step.size
        if step.size < 0:
            size_L = gather(blob, np.uint8, at_L - 1).astype(np.int64)
            follows_L &= head_L == step.heads[size_L]
        else:
            follows_L &= head_L == step.heads
        places.append((at_L, size_L))
        at_L = at_L + size_L
    return follows_L & (at_L == end_L), places  # no step goes back: who ends there was never beyond


def gather(blob: Bytes, dtype: DTypeLike, start_N: Integers) -> NDArray[Any]:
    """[N] items of that type, each from its byte on; a start beyond the last item gives the last item."""
    dtype = np.dtype(dtype)
    items: NDArray[Any] = np.ndarray(len(blob) - dtype.itemsize + 1, dtype, blob, strides=1)
    return items[np.minimum(start_N, len(items) - 1)]


def copy_floats(blob: Bytes, start_N: Integers, rows_N: Integers, columns_MW: NDArray[Any]) -> NDArray[np.bool_]:
    """Writes the floats from each start on into the rows of a part of the columns of all M rows.

    Returns:
        [N] whether each value of the row is finite, and no larger than the columns' type holds.
    """
    width = columns_MW.shape[1]
    block_rows = max(1, _BLOCK // (4 * width))
    limit = np.finfo(columns_MW.dtype).max
    holds_N = np.ones(len(rows_N), np.bool_)
    for block in (slice(start, start + block_rows) for start in range(0, len(rows_N), block_rows)):
        values = gather(blob, f"V{4 * width}", start_N[block]).view("<f4").reshape(-1, width)
        if not (-limit <= values.min() and values.max() <= limit):  # a NaN comes through min, and is not >= anything
            holds_N[block] = (np.abs(values) <= limit).all(axis=1)
            values = np.where(holds_N[block, None], values, 0)
        columns_MW[_span(rows_N[block])] = values
    return holds_N


def copy_bytes(blob: Bytes, start_N: Integers, rows_N: Integers, columns_MW: Bytes) -> None:
    """Writes the bytes from each start on into the rows of a part of the columns of all M rows."""
    width = columns_MW.shape[1]
    block_rows = max(1, _BLOCK // width)
    for block in (slice(start, start + block_rows) for start in range(0, len(rows_N), block_rows)):
        values = gather(blob, f"V{width}", start_N[block]).view(np.uint8).reshape(-1, width)
        columns_MW[_span(rows_N[block])] = values


def _span(rows_N: Integers) -> slice | Integers:
    """Ascending rows to write to, as a slice where they have no gap: that is twice as fast."""
    return slice(rows_N[0], rows_N[-1] + 1) if rows_N[-1] - rows_N[0] == len(rows_N) - 1 else rows_N


def read_varints(blob: Bytes, start_N: Integers, size_N: Integers) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """The integers of N packed lists: [V] the list that each is in, [V] its value, and [N] whether a list is sound.

    An integer of more than five bytes is taken for unsound: no class has it, and the general way says what it is.
    """
    stop_N = np.cumsum(size_N)
    total = int(stop_N[-1]) if len(stop_N) else 0
    if not total:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.ones(len(size_N), np.bool_)
    list_B = np.repeat(np.arange(len(size_N)), size_N)
    octet_B = blob[np.arange(total) + (start_N - stop_N + size_N)[list_B]]
    last_B = octet_B < 0x80
    end_N = stop_N[size_N > 0] - 1
    sound_N = np.ones(len(size_N), np.bool_)
    sound_N[list_B[end_N]] = last_B[end_N]
    last_B[end_N] = True  # so that an unsound list does not reach into the next
    end_V = np.flatnonzero(last_B)
    length_V = end_V + 1
    length_V[1:] -= length_V[:-1].copy()
    list_V = list_B[end_V]
    longest = int(length_V.max())
    if longest > 5:
        sound_N[list_V[length_V > 5]] = False
    value_V = octet_B[end_V] & np.int64(0x7F)
    for place in range(1, min(longest, 5)):  # from the last byte, which weighs most, to the first
        longer = np.flatnonzero(length_V > place)
        value_V[longer] = value_V[longer] << 7 | octet_B[end_V[longer] - place] & 0x7F
    return list_V, value_V, sound_N


@lru_cache(maxsize=4096)
def head(key: bytes, kind: int, size: int) -> bytes:
    """The bytes of a Features message from the entry of a key to its values: the tags and lengths of five messages."""
    before = b"\n" + varint(size)
    before = bytes([kind]) + varint(len(before) + size) + before
    before = b"\n" + varint(len(key)) + key + b"\x12" + varint(len(before) + size) + before
    return b"\n" + varint(len(before) + size) + before


def varint(value: int) -> bytes:
    """In the fewest bytes."""
    septets = [value & 0x7F]
    while value := value >> 7:
        septets[-1] |= 0x80
        septets.append(value & 0x7F)
    return bytes(septets)
