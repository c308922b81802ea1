"""The checksums of the TFRecord framing: masked CRC32Cs, one at a time or of whole arrays.

Shapes   N records
"""

from functools import cache
from typing import cast

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray


def mask(crc: int) -> int:
    """Masks a CRC as TensorFlow does, since the CRC of bytes that contain CRCs is weak (lib/hash/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def masked(crc_N: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Applies `mask` to every CRC of an array."""
    rotated_N = np.bitwise_or(crc_N >> 15, crc_N << 17)
    return cast(NDArray[np.uint32], rotated_N + np.uint32(0xA282EAD8))


def length_crcs(length_N: NDArray[np.int64]) -> NDArray[np.uint32]:
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
