"""The zlib stream, TensorFlow's second kind of compression (TFRecordOptions of type ZLIB); Python reads gzip only."""

import io
import zlib
from typing import BinaryIO, Final

_PIECE: Final = 1 << 18  # compressed bytes per read call


def is_zlib(head: bytes) -> bool:
    """Tells whether bytes begin like a zlib stream: its method and window, and a check of both (RFC 1950)."""
    return len(head) > 1 and head[0] == 0x78 and int.from_bytes(head[:2]) % 31 == 0 and not head[1] & 0x20


class ZlibFile(io.BufferedIOBase):
    """The decompressed bytes of a file that is one zlib stream; like `gzip.GzipFile`, it goes back by starting again.

    Reading raises EOFError where the stream is cut short, and zlib.error where it is damaged or bytes follow it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Reads from a stream, which is at its start and stays the caller's to close."""
        self._stream = stream
        self._restart()

    def _restart(self) -> None:
        self._stream.seek(0)
        self._inflate, self._at = zlib.decompressobj(), 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the offset in the decompressed bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to an offset in the decompressed bytes, counted from their start."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a zlib stream is only sought from its start")
        if offset < self._at:
            self._restart()
        while self._at < offset and self.read1(min(offset - self._at, _PIECE)):
            pass
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns `size` bytes, or all that are left; fewer at the end."""
        pieces = []
        while size and (piece := self.read1(-1 if size is None or size < 0 else size)):
            pieces.append(piece)
            size = size if size is None or size < 0 else size - len(piece)
        return b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        """Returns at least one byte and at most `size`; none at the end."""
        data = b""
        while not data and not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail or self._stream.read(_PIECE)
            if not compressed:
                raise EOFError("the zlib stream is cut short")
            data = self._inflate.decompress(compressed, _PIECE if size < 0 else size)
        if self._inflate.unused_data or (self._inflate.eof and not data and self._stream.read(1)):
            raise zlib.error("bytes follow the zlib stream")
        self._at += len(data)
        return data
