"""tf.train.Example and tf.train.SequenceExample from their bytes, one record at a time: general, and not fast.

    Example          { Features features = 1; }
    SequenceExample  { Features context  = 1;  FeatureLists feature_lists = 2; }
    Features         { map<string, Feature> feature = 1; }            FeatureList { repeated Feature feature = 1; }
    FeatureLists     { map<string, FeatureList> feature_list = 1; }
    Feature          { oneof kind { BytesList = 1; FloatList = 2; Int64List = 3; } }     each: repeated value = 1

As protobuf has it: fields in any order, fragments of a message are merged, the last entry of a map key and the last
kind of a oneof win, lists come packed or not, unknown fields are skipped. (tensorflow/core/example/example.proto and
protobuf.dev/programming-guides/encoding.) Written out here because the classes of the `tfrecord` package come with
`import torch` and cannot live beside torchdata's; they are the tests' oracle.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Values = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
Field = tuple[int, int, int | bytes]  # field number, wire type, value: an int for a varint, else the bytes

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
_SIZES: Final = {FIXED64: 8, FIXED32: 4}


class WireError(ValueError):
    """The bytes are no protobuf message of the expected kind."""


def parse_record(data: bytes) -> tuple[dict[str, Values], dict[str, list[Values]]]:
    """Features (or the context) and feature lists of one record, by name.

    A feature without a kind is left out: TensorFlow, too, takes it for missing.

    Raises:
        WireError: the bytes are not a tf.train.Example or SequenceExample.
    """
    fields = list(_fields(data))
    features = _map(_messages(fields, 1), _feature)
    lists = _map(_messages(fields, 2), _feature_list)
    return {name: values for name, values in features.items() if values is not None}, lists


def _map(fragments: list[bytes], parse: Callable[[list[bytes]], T]) -> dict[str, T]:
    """The entries {key = 1, value = 2} in field 1 of all fragments; the last entry of a key wins.

    An entry with anything else in it is set aside whole, as protobuf's own parser (upb) does.
    """
    entries = {}
    for fragment in fragments:
        for entry in _messages(_fields(fragment), 1):
            fields = list(_fields(entry))
            if any(number not in (1, 2) or wire != BYTES for number, wire, _ in fields):
                continue
            key = (_messages(fields, 1) or [b""])[-1]
            try:
                entries[key.decode()] = parse(_messages(fields, 2))
            except UnicodeDecodeError:
                raise WireError(f"the key {key!r} is not UTF-8") from None
    return entries


def _feature_list(fragments: list[bytes]) -> list[Values]:
    values = [_feature([feature]) for fragment in fragments for feature in _messages(_fields(fragment), 1)]
    return [[] if value is None else value for value in values]


def _feature(fragments: list[bytes]) -> Values | None:
    """The values of one Feature, merged from its fragments; None without a kind."""
    kind = 0
    pieces: list[Any] = []
    for fragment in fragments:
        for number, wire_type, value in _fields(fragment):
            if wire_type == BYTES and number in _KINDS:
                assert isinstance(value, bytes)
                if number != kind:  # another kind clears the one before it
                    kind, pieces = number, []
                pieces += _KINDS[number](value)
    match kind:
        case 1:
            return pieces
        case 2:
            return np.frombuffer(b"".join(pieces), "<f4").astype(np.float32)
        case 3:
            return np.array(pieces, np.uint64).view(np.int64)  # two's complement
    return None


def _bytes_list(message: bytes) -> list[bytes]:
    return _messages(_fields(message), 1)


def _float_list(message: bytes) -> list[bytes]:
    """Little-endian floats, in pieces."""
    pieces = []
    for number, wire_type, value in _fields(message):
        if number == 1 and wire_type in (BYTES, FIXED32):
            assert isinstance(value, bytes)
            pieces.append(value)
            if len(value) % 4:
                raise WireError(f"a packed list of floats has {len(value)} bytes, which 4 does not divide")
    return pieces


def _int64_list(message: bytes) -> list[int]:
    """Unsigned integers of 64 bits."""
    values = []
    for number, wire_type, value in _fields(message):
        if number == 1 and wire_type == VARINT:
            assert isinstance(value, int)
            values.append(value)
        elif number == 1 and wire_type == BYTES:
            assert isinstance(value, bytes)
            at = 0
            while at < len(value):
                integer, at = read_varint(value, at)
                values.append(integer)
    return values


_KINDS: Final[dict[int, Callable[[bytes], list[Any]]]] = {1: _bytes_list, 2: _float_list, 3: _int64_list}


def _messages(fields: Iterable[Field], number: int) -> list[bytes]:
    """Every length-delimited value of one field; the same number with another wire type is an unknown field."""
    return [value for found, wire, value in fields if found == number and wire == BYTES and isinstance(value, bytes)]


def _fields(message: bytes) -> Iterator[Field]:
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise WireError(f"there is no field number {number}")
        if wire_type == VARINT:
            integer, at = read_varint(message, at)
            yield number, wire_type, integer
            continue
        if wire_type == BYTES:
            size, at = read_varint(message, at)
        elif wire_type in _SIZES:
            size = _SIZES[wire_type]
        else:
            raise WireError(f"wire type {wire_type} of field {number} is not in use")
        if size > len(message) - at:
            raise WireError(f"field {number} claims {size} bytes, but only {len(message) - at} are left")
        yield number, wire_type, message[at : at + size]
        at += size


def read_varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    """The unsigned base-128 integer at a position, at most 64 bits, and the position after it.

    Raises:
        WireError: it runs past the end, or has more than ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            raise WireError("an integer is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise WireError("an integer has more than ten bytes")
