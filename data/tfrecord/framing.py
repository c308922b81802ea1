"""TFRecord framing: where the records of a shard lie, and whether their checksums match.

A shard is a sequence of frames, as plain bytes or as one gzip or zlib stream (TensorFlow's compression types GZIP and
ZLIB), in a local file or behind any fsspec URL:

    uint64 length | uint32 masked CRC32C of the length | `length` bytes of data | uint32 masked CRC32C of the data

All integers are little-endian (tensorflow/core/lib/io/record_writer.h). `read_records` streams and says what is wrong
with a damaged file. `load_blocks` reads a shard into memory, BLOCK_BYTES at a time, and is several times faster. Both
check both CRCs of every record.

Shapes   N records of the shard or of a block
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
from itertools import islice
from typing import Any, BinaryIO, Final, Literal, cast

import numpy as np
from crc32c import crc32c
from numpy.typing import DTypeLike, NDArray

from data import remote
from data.errors import ShardError, UnreachableError
from data.retry import attempts, retried, text_of
from data.tfrecord.checksums import length_crcs, mask, masked
from data.tfrecord.compression import ZlibFile, is_zlib

PADDING: Final = 512  # zero bytes after the last frame of a loaded block: more than `gather` reads beyond an offset
BLOCK_BYTES: Final = 64 << 20  # of a shard that are in memory at once, decompressed; more where a record is larger

_HEADER: Final = struct.Struct("<QI")
_LENGTH: Final = struct.Struct("<Q")  # the first part of the header
_FOOTER: Final = struct.Struct("<I")
_PIECE: Final = 1 << 24  # bytes per read call, so that a forged length allocates no memory

_CORRUPT: Final = (gzip.BadGzipFile, EOFError, zlib.error)  # what the bytes say; the first one is an OSError too

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
                    if _FOOTER.unpack(footer)[0] != mask(crc32c(data)):
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
        if compression_of(file.read(_HEADER.size)) is not None:
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
    """A block of a shard in memory (or several shards, one after the other), decompressed, with all CRCs checked."""

    buffer: Bytes  # the frames, then PADDING zero bytes
    start_N: Integers  # offset of each record's data in the buffer
    stop_N: Integers  # offset of the byte after it
    crc_N: NDArray[np.uint32]  # masked CRC32C of each record's data, as stored
    offset: int = 0  # of the buffer's first byte in the decompressed shard

    def __len__(self) -> int:
        """Returns N."""
        return len(self.start_N)

    def frame_offset(self, row: int) -> int:
        """Returns the offset at which the frame of a record starts, as `read_records` gives it."""
        return self.offset + int(self.start_N[row]) - _HEADER.size

    def data(self, row: int) -> bytes:
        """Returns a copy of the data of one record."""
        return self.buffer[self.start_N[row] : self.stop_N[row]].tobytes()


def looks_like_shard(path: str | os.PathLike[str]) -> bool:
    """Tells whether a file is a TFRecord file, by its name or by its first record."""
    name = os.fspath(path)
    if ".tfrecord" in os.path.basename(name):
        return True
    try:
        with _open(name) as stream:
            head = _read(stream, _HEADER.size)
    except remote.errors(OSError, EOFError, zlib.error):
        return False
    return len(head) == _HEADER.size and _is_header(head)


def load_blocks(path: str | os.PathLike[str]) -> Iterator[Records]:
    """Reads a shard into memory, a block of whole records at a time; a small or empty shard is one block.

    Raises:
        DataError: as `read_records`.
    """
    name = os.fspath(path)
    with _told_apart(name, lambda: None):
        try:
            for offset, buffer, frames in _blocks(name):
                records, sound_N = _checked(buffer, frames, offset)
                if not sound_N.all():
                    raise _damage(name)
                yield records
        except _CORRUPT:
            raise _damage(name) from None


def load_together(names: Sequence[str]) -> tuple[Records, list[slice | None]]:
    """Reads several shards as if they were one.

    Returns:
        The records of all shards, and the rows of each shard. None: the shard is damaged, and `load_blocks` says why,
        or has several blocks.

    Raises:
        UnreachableError: a shard cannot be read.
    """
    frames: list[_Frame] = []
    pieces: list[Bytes] = []
    rows: list[slice | None] = []
    for name in names:
        if (only := _only_block(name)) is None:
            rows.append(None)
            continue
        buffer, found = only
        rows.append(slice(len(frames), len(frames) + len(found)))
        frames += found
        pieces.append(buffer[:-PADDING])
    records, sound_N = _checked(np.concatenate([*pieces, np.zeros(PADDING, np.uint8)]), frames)
    return records, [None if part is None or not sound_N[part].all() else part for part in rows]


def content_hash(crc_N: NDArray[np.uint32]) -> str:
    """Hashes the records' stored CRCs in order: equal for a copy of the shard, plain or compressed, under any name."""
    return hashlib.blake2b(crc_N.tobytes(), digest_size=16).hexdigest()


def gather(buffer: Bytes, dtype: DTypeLike, start_N: Integers) -> NDArray[Any]:
    """Reads [N] items of a type, each from its own offset in the buffer.

    An offset beyond the last possible item reads the last possible item.
    """
    dtype = np.dtype(dtype)
    items: NDArray[Any] = np.ndarray(len(buffer) - dtype.itemsize + 1, dtype, buffer, strides=1)
    return items[np.minimum(start_N, len(items) - 1)]


_Frame = tuple[int, int]  # length of a record's data, and the CRC32C computed from them


def _blocks(name: str) -> Iterator[tuple[int, Bytes, list[_Frame]]]:
    """Yields blocks of whole frames: the offset in the shard, the bytes with PADDING, and the frames.

    Raises:
        ShardError: the shard is cut short, or a record that no block holds has a damaged length.
        OSError, EOFError, zlib.error, ...: what `_told_apart` tells apart.
    """
    offset = 0
    for attempt in attempts(name):
        with attempt, _open(name) as stream:
            stream.seek(offset)
            # One byte more than the file has, so that reading it shows its end.
            capacity = min(BLOCK_BYTES, _size_of(stream) - offset + 1)
            rest, at_end = np.empty(0, np.uint8), False
            while not at_end:
                buffer = np.empty(capacity + PADDING, np.uint8)
                buffer[: len(rest)] = rest
                size = len(rest) + _read_into(stream, buffer[len(rest) : capacity])
                at_end = size < capacity
                frames, used = _scan(buffer.data, size)
                rest = buffer[used:size].copy()
                if at_end and len(rest):
                    raise _damage(name)
                if not (frames or at_end):  # a record larger than the block; a forged length is not believed at once
                    _check_header(name, offset, rest[: _HEADER.size].tobytes())
                    capacity *= 2
                    continue
                buffer[used : used + PADDING] = 0
                attempt.progressed()
                if frames or not offset:
                    yield offset, buffer[: used + PADDING], frames
                offset += used
                capacity = max(BLOCK_BYTES, len(rest) + 1)


def _only_block(name: str) -> tuple[Bytes, list[_Frame]] | None:
    """Returns the bytes of a small shard with PADDING, and its frames; None where it is damaged or has several blocks.

    Raises:
        UnreachableError: it cannot be read.
    """
    try:
        with _told_apart(name, lambda: None):
            (_, buffer, frames), *others = islice(_blocks(name), 2)
    except ShardError:
        return None
    return None if others else (buffer, frames)


def _size_of(stream: BinaryIO) -> int:
    """Returns the size of a plain local file; of other streams it is not known, so that of a block."""
    return os.fstat(stream.fileno()).st_size if isinstance(stream, io.BufferedReader) else BLOCK_BYTES


def _read_into(stream: BinaryIO, buffer: Bytes) -> int:
    """Fills the buffer, or reads to the end of the stream where that comes before; returns the number of bytes."""
    size = 0
    while size < len(buffer):
        if isinstance(stream, io.BufferedIOBase):
            read = stream.readinto(buffer[size : size + _PIECE].data)
        else:  # a file object of a store
            piece = stream.read(min(len(buffer) - size, _PIECE))
            read = len(piece)
            buffer[size : size + read] = np.frombuffer(piece, np.uint8)
        if not read:
            break
        size += read
    return size


def _scan(view: memoryview, size: int) -> tuple[list[_Frame], int]:
    """Finds the whole frames among the first `size` bytes; returns them, and the number of bytes that they take."""
    unpack, header, footer = _LENGTH.unpack_from, _HEADER.size, _FOOTER.size
    at, frames = 0, []
    while at + header <= size:
        (length,) = unpack(view, at)
        start = at + header
        end = start + length + footer
        if end > size:
            break
        frames.append((length, crc32c(view[start : start + length])))
        at = end
    return frames, at


def _checked(buffer: Bytes, frames: Sequence[_Frame], offset: int = 0) -> tuple[Records, NDArray[np.bool_]]:
    """Returns the records of these frames, one after the other, and for each whether both CRCs match."""
    length_N, data_crc_N = np.array(frames, np.int64).reshape(-1, 2).T
    stop_N = np.cumsum(length_N + _frame_size(0)) - _FOOTER.size
    start_N = stop_N - length_N
    crc_N = gather(buffer, "<u4", stop_N)
    stored_N = gather(buffer, "<u4", start_N - 4)
    sound_N = (stored_N == masked(length_crcs(length_N))) & (crc_N == masked(data_crc_N.astype(np.uint32)))
    return Records(buffer=buffer, start_N=start_N, stop_N=stop_N, crc_N=crc_N, offset=offset), sound_N


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
    except _CORRUPT as error:
        raise ShardError(name, f"cannot be read: {text_of(error)}", offset()) from error
    except remote.errors(OSError, ValueError, ImportError) as error:
        # fsspec raises ValueError and ImportError for an unknown protocol.
        raise UnreachableError(name, f"cannot be read: {text_of(error)}") from error


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    """Opens the frames for reading, decompressed if the file is a gzip or zlib stream."""
    with _open_raw(name) as stream:
        compression = compression_of(stream.read(_HEADER.size))
        stream.seek(0)
        if compression == "gzip":
            with gzip.GzipFile(fileobj=stream) as decompressed:
                yield cast(BinaryIO, decompressed)
        elif compression == "zlib":
            yield cast(BinaryIO, ZlibFile(stream))
        else:
            yield stream


def _open_raw(name: str) -> BinaryIO:
    if "://" not in name:
        return open(name, "rb")
    filesystem, path = remote.filesystem(name)
    return cast(BinaryIO, filesystem.open(path, "rb"))


def compression_of(head: bytes) -> Literal["gzip", "zlib"] | None:
    """Tells the compression of a file by its first 12 bytes, unless they are the header of a record."""
    if len(head) == _HEADER.size and _is_header(head):
        return None
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    return "zlib" if is_zlib(head) else None


def _is_header(header: bytes) -> bool:
    return bool(_HEADER.unpack(header)[1] == mask(crc32c(header[:8])))


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
