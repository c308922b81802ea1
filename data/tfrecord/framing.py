"""TFRecord framing: where the records of a shard lie, and whether their checksums match.

A shard is a sequence of frames, as plain bytes or as one gzip stream, in a local file or behind any fsspec URL:

    uint64 length | uint32 masked CRC32C of the length | `length` bytes of data | uint32 masked CRC32C of the data

All integers are little-endian (tensorflow/core/lib/io/record_writer.h). `read_records` streams and says what is wrong
with a damaged file. `load_records` reads a whole shard into memory and is several times faster. Both check both CRCs of
every record.

Shapes   N records of the shard
"""

import gzip
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, Final, cast

import numpy as np
from crc32c import crc32c
from numpy.typing import DTypeLike, NDArray

from data import remote
from data.errors import ShardError, UnreachableError
from data.retry import attempts, retried, text_of

PADDING: Final = 512  # zero bytes after the last frame of a loaded shard: more than `gather` reads beyond an offset

_HEADER: Final = struct.Struct("<QI")
_LENGTH: Final = struct.Struct("<Q")  # the first part of the header
_FOOTER: Final = struct.Struct("<I")
_PIECE: Final = 1 << 24  # bytes per read call, so that a forged length allocates no memory

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Streams (offset of the frame in bytes, data) of every record; a file of any size needs little memory.

    Offsets count the decompressed bytes.

    Raises:
        ShardError: the file is no TFRecord file, is damaged or is cut short.
        UnreachableError: the file cannot be read.
    """
    name = os.fspath(path)
    offset = 0
    with _told_apart(name, lambda: offset):
        for attempt in attempts(name):
            with attempt, _open(name) as stream:
                stream.seek(offset)
                while header := _read(stream, _HEADER.size):
                    length = _check_header(name, offset, header)
                    data = _read(stream, length)
                    footer = _read(stream, _FOOTER.size)
                    if len(footer) < _FOOTER.size:
                        raise _cut_short(name, offset, length, _HEADER.size + len(data) + len(footer))
                    if _FOOTER.unpack(footer)[0] != _mask(crc32c(data)):
                        raise ShardError(name, "is damaged: its data does not match its CRC", offset)
                    attempt.progressed()
                    yield offset, data
                    offset += _frame_size(length)


def count_records(path: str | os.PathLike[str]) -> int:
    """Counts the records; of a plain local file it reads only the headers.

    Raises:
        DataError: as `read_records`, for what the headers show.
    """
    name = os.fspath(path)
    if "://" in name or not os.path.isfile(name):
        return sum(1 for _ in read_records(name))
    with _told_apart(name, lambda: None):
        return retried(lambda: _count_by_headers(name), name)


def _count_by_headers(name: str) -> int:
    with open(name, "rb", buffering=0) as file:
        if _is_gzip(file.read(_HEADER.size)):
            return sum(1 for _ in read_records(name))
        count, offset, size = 0, 0, os.fstat(file.fileno()).st_size
        while offset < size:
            file.seek(offset)
            length = _check_header(name, offset, file.read(_HEADER.size))
            if _frame_size(length) > size - offset:
                raise _cut_short(name, offset, length, size - offset)
            offset += _frame_size(length)
            count += 1
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A whole shard in memory (or several, one after the other), decompressed, with all CRCs checked."""

    buffer: Bytes  # the frames, then PADDING zero bytes
    start_N: Integers  # offset of each record's data in the buffer
    stop_N: Integers  # offset of the byte after it
    crc_N: NDArray[np.uint32]  # masked CRC32C of each record's data, as stored

    def __len__(self) -> int:
        """Returns N."""
        return len(self.start_N)

    def frame_offset(self, row: int) -> int:
        """Returns the offset at which the frame of a record starts, as `read_records` gives it."""
        return int(self.start_N[row]) - _HEADER.size

    def data(self, row: int) -> bytes:
        """Returns a copy of the data of one record."""
        return self.buffer[self.start_N[row] : self.stop_N[row]].tobytes()


def load_records(path: str | os.PathLike[str]) -> Records:
    """Reads a whole shard into memory.

    Raises:
        DataError: as `read_records`.
    """
    name = os.fspath(path)
    if (scanned := _scanned(name)) is not None:
        records, sound_N = _checked(*scanned)
        if sound_N.all():
            return records
    raise _damage(name)


def load_together(names: Sequence[str]) -> tuple[Records, list[slice | None]]:
    """Reads several shards as if they were one.

    Returns:
        The records of all shards, and the rows of each shard. None: the shard is damaged, and `load_records` says why.

    Raises:
        UnreachableError: a shard cannot be read.
    """
    frames: list[_Frame] = []
    pieces: list[Bytes] = []
    rows: list[slice | None] = []
    for name in names:
        if (scanned := _scanned(name)) is None:
            rows.append(None)
            continue
        buffer, found = scanned
        rows.append(slice(len(frames), len(frames) + len(found)))
        frames += found
        pieces.append(buffer[:-PADDING])
    records, sound_N = _checked(np.concatenate([*pieces, np.zeros(PADDING, np.uint8)]), frames)
    return records, [None if part is None or not sound_N[part].all() else part for part in rows]


def content_hash(crc_N: NDArray[np.uint32]) -> str:
    """Hashes the records' stored CRCs in order: equal for a copy of the shard, plain or gzip, under any name."""
    return hashlib.blake2b(crc_N.tobytes(), digest_size=16).hexdigest()


def gather(buffer: Bytes, dtype: DTypeLike, start_N: Integers) -> NDArray[Any]:
    """Reads [N] items of a type, each from its own offset in the buffer.

    An offset beyond the last possible item reads the last possible item.
    """
    dtype = np.dtype(dtype)
    items: NDArray[Any] = np.ndarray(len(buffer) - dtype.itemsize + 1, dtype, buffer, strides=1)
    return items[np.minimum(start_N, len(items) - 1)]


_Frame = tuple[int, int]  # length of a record's data, and the CRC32C computed from them


def _scanned(name: str) -> tuple[Bytes, list[_Frame]] | None:
    """Returns the decompressed shard with PADDING, and its frames; None: it is damaged or cut short.

    Raises:
        UnreachableError: it cannot be read.
    """
    try:
        with _told_apart(name, lambda: None):
            buffer, size = retried(lambda: _load(name), name)
        return buffer[: size + PADDING], _scan(buffer.data, size)
    except (ShardError, ValueError):
        return None


def _load(name: str) -> tuple[Bytes, int]:
    """Returns the decompressed shard with PADDING zero bytes after it, and its size without them."""
    with _open(name) as stream:
        if isinstance(stream, io.BufferedReader):  # a plain local file: read in place, without a second copy
            buffer = np.empty(os.fstat(stream.fileno()).st_size + PADDING, np.uint8)
            size = stream.readinto(buffer[:-PADDING].data)
            buffer[size:] = 0
            return buffer, size
        data = stream.read()
        return np.frombuffer(data + bytes(PADDING), np.uint8), len(data)


def _scan(view: memoryview, size: int) -> list[_Frame]:
    """Finds the frames of a shard of that size.

    Raises:
        ValueError: the last frame is cut short.
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


def _checked(buffer: Bytes, frames: Sequence[_Frame]) -> tuple[Records, NDArray[np.bool_]]:
    """Returns the records of these frames, one after the other, and for each whether both CRCs match."""
    length_N, data_crc_N = np.array(frames, np.int64).reshape(-1, 2).T
    stop_N = np.cumsum(length_N + _frame_size(0)) - _FOOTER.size
    start_N = stop_N - length_N
    crc_N = gather(buffer, "<u4", stop_N)
    stored_N = gather(buffer, "<u4", start_N - 4)
    sound_N = (stored_N == _masked(_length_crcs(length_N))) & (crc_N == _masked(data_crc_N.astype(np.uint32)))
    return Records(buffer=buffer, start_N=start_N, stop_N=stop_N, crc_N=crc_N), sound_N


def _damage(name: str) -> ShardError:
    """Reads a damaged shard again with `read_records`, which names the record and the reason."""
    try:
        for _ in read_records(name):
            pass
    except ShardError as error:
        return error
    return ShardError(name, "changed while it was read; start again when it is complete")


def _cut_short(name: str, offset: int, length: int, available: int) -> ShardError:
    return ShardError(name, f"is cut short: {_frame_size(length)} bytes are due, {available} are there", offset)


@contextmanager
def _told_apart(name: str, offset: Callable[[], int | None]) -> Iterator[None]:
    """Raises what the bytes say as a ShardError, and what is wrong with the way to them as an UnreachableError.

    Args:
        name: of the file that the block reads.
        offset: gives the byte of the record that is being read.
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:  # the first one is an OSError too
        raise ShardError(name, f"cannot be read: {text_of(error)}", offset()) from error
    except remote.errors(OSError, ValueError, ImportError) as error:
        # fsspec raises ValueError and ImportError for an unknown protocol.
        raise UnreachableError(name, f"cannot be read: {text_of(error)}") from error


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    """Opens the frames for reading, decompressed if the file is a gzip stream."""
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
    """Tells gzip by its magic bytes, unless they are the length of a record whose CRC matches."""
    return head[:3] == b"\x1f\x8b\x08" and not (len(head) == _HEADER.size and _is_header(head))


def _is_header(header: bytes) -> bool:
    return bool(_HEADER.unpack(header)[1] == _mask(crc32c(header[:8])))


def _check_header(name: str, offset: int, header: bytes) -> int:
    """Returns the length of the record's data.

    Raises:
        ShardError: the header is cut short or its CRC does not match.
    """
    if len(header) < _HEADER.size:
        reason = f"is cut short: its header has {_HEADER.size} bytes, {len(header)} are there"
        raise ShardError(name, reason, offset)
    if not _is_header(header):
        foreign = " (is this a TFRecord file?)" if offset == 0 else ""
        raise ShardError(name, f"is damaged: its length does not match its CRC{foreign}", offset)
    return int(_HEADER.unpack(header)[0])


def _read(stream: BinaryIO, size: int) -> bytes:
    """Reads `size` bytes, or fewer where the file ends before."""
    pieces = []
    while size and (piece := stream.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _frame_size(length: int) -> int:
    return _HEADER.size + length + _FOOTER.size


def _mask(crc: int) -> int:
    """Masks a CRC as TensorFlow does, since the CRC of bytes that contain CRCs is weak (lib/hash/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def _masked(crc_N: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Applies `_mask` to every CRC of an array."""
    rotated_N = np.bitwise_or(crc_N >> 15, crc_N << 17)
    return cast(NDArray[np.uint32], rotated_N + np.uint32(0xA282EAD8))


def _length_crcs(length_N: Integers) -> NDArray[np.uint32]:
    """Computes the CRC32C of each length as 8 bytes, by tables: crc(a ^ b) = crc(a) ^ crc(b) ^ crc(0)."""
    octets_N8 = length_N.astype("<i8")[:, None].view(np.uint8)
    crc_N: NDArray[np.uint32] = np.bitwise_xor.reduce(_crc_tables()[np.arange(8), octets_N8], axis=1)
    return crc_N


@cache
def _crc_tables() -> NDArray[np.uint32]:
    """Returns the [8, 256] CRCs of 8 bytes of which one, given by position and value, is not zero.

    All rows but the first are XORed with crc(0), so that the XOR of one entry per row is the CRC of the 8 bytes.
    """
    alone = [[crc32c((octet << 8 * position).to_bytes(8, "little")) for octet in range(256)] for position in range(8)]
    tables = np.array(alone, np.uint32)
    tables[1:] ^= tables[0, 0]
    return tables
