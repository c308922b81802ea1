"""One record at a time: tf.train.Example and tf.train.SequenceExample, parsed by protobuf's own parser (upb).

    Example          { Features features = 1; }
    SequenceExample  { Features context  = 1;  FeatureLists feature_lists = 2; }
    Features         { map<string, Feature> feature = 1; }
    FeatureLists     { map<string, FeatureList> feature_list = 1; }
    FeatureList      { repeated Feature feature = 1; }
    Feature          { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
    BytesList        { repeated bytes value = 1; }          FloatList and Int64List likewise, packed

(tensorflow/core/example/example.proto and feature.proto.) On the wire an Example is a SequenceExample without feature
lists, so one message class reads both. The descriptors are built here, in a private pool: message classes of the same
names that TensorFlow or the `tfrecord` package may have registered in this process do not clash with them.

Shapes   T frames of a video   W bytes of a frame, one feature
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from data.errors import ShardError
from data.schema import ID_KEYS, LABELS_KEY, Schema, quantise
from data.tfrecord.framing import Records, read_records

BYTES_LIST, FLOAT_LIST, INT64_LIST = 0x0A, 0x12, 0x1A  # tags of the kinds of a Feature

Values = list[bytes] | NDArray[np.float32] | NDArray[np.int64]  # of one feature, in the order of the record


def read_examples(path: str | os.PathLike[str]) -> Iterator["Example"]:
    """Streams every record of a shard, in order, without a schema.

    Raises:
        ShardError: the file is no TFRecord file, is damaged or cut short, or a record is neither a tf.train.Example nor
            a tf.train.SequenceExample.
        UnreachableError: the file cannot be read.
    """
    name = os.fspath(path)
    for offset, data in read_records(name):
        yield Example.parse(name, offset, data)


def example_of(path: str, records: Records, row: int) -> "Example":
    """Parses one record of a loaded shard.

    Raises:
        ShardError: it is neither a tf.train.Example nor a tf.train.SequenceExample.
    """
    return Example.parse(path, records.frame_offset(row), records.data(row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One record as it is stored: a tf.train.Example, or a SequenceExample if it has feature lists."""

    path: str  # the shard
    offset: int  # byte at which the record's frame starts
    message: Any  # protobuf's SequenceExample

    @classmethod
    def parse(cls, path: str, offset: int, data: bytes) -> "Example":
        """Parses the data of the record at `offset` of the shard `path`.

        Raises:
            ShardError: the data is neither a tf.train.Example nor a tf.train.SequenceExample.
        """
        try:
            return cls(path=path, offset=offset, message=_SequenceExample.FromString(data))
        except DecodeError:  # its text names the message type, and not what is wrong with the bytes
            reason = "is no tf.train.Example: protobuf cannot parse it, although its CRC matches"
            raise ShardError(path, reason, offset) from None

    @property
    def features(self) -> dict[str, Values]:
        """All features by name, of a SequenceExample its context; a feature without a kind counts as missing."""
        features = {key: _values(feature) for key, feature in self.message.context.feature.items()}
        return {key: values for key, values in features.items() if values is not None}

    @property
    def feature_lists(self) -> dict[str, list[Values]]:
        """The values of every step of all feature lists, by name."""
        lists = {}
        for key, feature_list in self.message.feature_lists.feature_list.items():
            steps = [_values(feature) for feature in feature_list.feature]
            lists[key] = [[] if values is None else values for values in steps]
        return lists

    def num_steps(self, key: str) -> int:
        """Returns the number of steps of a feature list that the record has."""
        return len(self.message.feature_lists.feature_list[key].feature)

    def first_step(self, key: str) -> Values | None:
        """Returns the values of the first step of a feature list that has one; None where it has no kind."""
        return _values(self.message.feature_lists.feature_list[key].feature[0])

    def values(self, key: str) -> Values | None:
        """Returns the values of one feature, or None where it is missing or has no kind."""
        feature = self.message.context.feature.get(key)
        return None if feature is None else _values(feature)

    def frames(self, key: str, width: int) -> NDArray[np.uint8]:
        """Returns the [T, W] bytes of one feature list, of which every step is one bytes value of that width.

        Steps of W floats, as the feature extractor of MediaPipe writes them, are quantised (data.schema.quantise).

        Raises:
            ShardError: the list is missing or empty, or a step is something else.
        """
        feature_list = self.message.feature_lists.feature_list.get(key)
        if feature_list is None:
            if others := ", ".join(map(repr, sorted(self.message.feature_lists.feature_list))):
                raise self.error(f"is missing; the record has the feature lists {others}", key)
            raise self.error("is missing: this is no SequenceExample with feature lists, but frames are due", key)
        # protobuf encodes every step of that kind in equally many bytes, which numpy takes apart at once: five times as
        # fast as asking for each step. Whatever has other bytes is looked at step by step.
        encoded = np.frombuffer(feature_list.SerializeToString(), np.uint8)
        if (values := _equal_steps(encoded, frame_head(width), width)) is not None:
            return values
        floats = _equal_steps(encoded, frame_head(4 * width, FLOAT_LIST), 4 * width)
        if floats is not None and np.isfinite(values_TW := np.ascontiguousarray(floats).view("<f4")).all():
            return quantise(values_TW)
        return self._frames_by_step(feature_list, key, width)

    def _frames_by_step(self, feature_list: Any, key: str, width: int) -> NDArray[np.uint8]:
        frames = []
        for number, feature in enumerate(feature_list.feature):
            values = _values(feature)
            if values is not None and not isinstance(values, list):
                frames.append(self._quantised(values, number, key, width))
                continue
            if values is None or len(values) != 1:
                raise self.error(f"frame {number} holds {len(values or [])} values, but one is due", key)
            if len(values[0]) != width:
                raise self.error(f"frame {number} has {len(values[0])} bytes, but the schema says {width}", key)
            frames.append(np.frombuffer(values[0], np.uint8))
        if not frames:
            raise self.error("has no frame", key)
        return np.stack(frames)

    def _quantised(self, values: NDArray[Any], number: int, key: str, width: int) -> NDArray[np.uint8]:
        """Returns the bytes of a frame of floats.

        Raises:
            ShardError: it has another type or width, or a value that is not finite.
        """
        if values.dtype != np.float32:
            raise self.error(f"frame {number} holds {values.dtype}, but a frame is bytes or float32", key)
        if len(values) != width:
            raise self.error(f"frame {number} has {len(values)} values, but the schema says {width}", key)
        if not np.isfinite(values).all():
            at = int(np.isfinite(values).argmin())
            raise self.error(f"frame {number}: value {at} is {values[at]}, but features must be finite", key)
        return quantise(values)

    @property
    def id(self) -> bytes:
        """The video's id under ID_KEYS, as `id_under` gives it."""
        return self.id_under(ID_KEYS)

    def id_under(self, keys: Sequence[str]) -> bytes:
        """Returns the video's id, under the first of the keys that the record has.

        Raises:
            ShardError: the record has none of them, or it is not one non-empty bytes value.
        """
        for key in keys:
            if (values := self.values(key)) is not None:
                return self._checked_id(key, values)
        raise self.error(f"is missing (no {' or '.join(map(repr, keys))})", keys[0])

    def _checked_id(self, key: str, values: Values) -> bytes:
        if not isinstance(values, list):
            raise self.error(f"holds {values.dtype}, but an id is bytes", key)
        if len(values) != 1:
            raise self.error(f"holds {len(values)} values, but one is due", key)
        if not values[0]:
            raise self.error("is empty", key)
        if values[0].endswith(b"\0"):  # numpy's bytes_ would drop it
            raise self.error("ends with a zero byte, which no id does", key)
        return values[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels under LABELS_KEY, as `labels_under` gives them."""
        return self.labels_under(LABELS_KEY)

    def labels_under(self, key: str) -> NDArray[np.int64]:
        """Returns the labels as they are stored, in any order and possibly repeated.

        Raises:
            ShardError: the key is missing, or holds no integers.
        """
        values = self.values(key)
        if values is None:
            raise self.error("is missing", key)
        if isinstance(values, list) or values.dtype != np.int64:
            raise self.error(f"holds {type_of(values)}, but labels are int64", key)
        return values.astype(np.int64, copy=False)

    def checked_labels(self, schema: Schema, required: bool = True) -> NDArray[np.int64]:
        """The labels as they are stored; empty where the key is missing and not required.

        Raises:
            ShardError: as `labels_under`, and for a label that is no class.
        """
        key = schema.key(LABELS_KEY)
        if not required and self.values(key) is None:
            return np.empty(0, np.int64)
        labels = self.labels_under(key)
        self.check_classes(labels, schema.num_classes, key)
        return labels

    def check_classes(self, labels: NDArray[np.int64], num_classes: int, key: str) -> None:
        """Checks that every label is a class.

        Raises:
            ShardError: a label lies outside [0, num_classes).
        """
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise self.error(f"holds the label {wrong}, outside the classes [0, {num_classes})", key)

    def error(self, reason: str, key: str | None = None) -> ShardError:
        """Returns, to be raised, the error that names this record, the key and the reason."""
        return ShardError(self.path, reason, self.offset, key)


def type_of(values: Values) -> str:
    """Returns the name of the values' type: bytes, float32 or int64."""
    return "bytes" if isinstance(values, list) else str(values.dtype)


def varint(value: int) -> bytes:
    """Encodes a non-negative integer in base 128, as protobuf does, in the fewest bytes."""
    septets = [value & 0x7F]
    while value := value >> 7:
        septets[-1] |= 0x80
        septets.append(value & 0x7F)
    return bytes(septets)


def _values(feature: Any) -> Values | None:
    """Returns the values of a protobuf Feature; None where it has no kind, which TensorFlow takes for missing."""
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return _floats(feature.float_list)
    if kind == "int64_list":
        return np.array(feature.int64_list.value[:], np.int64)
    return None if kind is None else list(feature.bytes_list.value)


def _floats(float_list: Any) -> NDArray[np.float32]:
    """Returns the values of a FloatList, from protobuf's packed encoding: a tag, the length in bytes, the values.

    One Python float for each value would take thirty times as long.
    """
    count = len(float_list.value)
    if not count:
        return np.empty(0, np.float32)
    return np.frombuffer(float_list.SerializeToString(), "<f4", count, 1 + len(varint(4 * count)))


@lru_cache(maxsize=64)
def frame_head(size: int, kind: int = BYTES_LIST) -> bytes:
    """Returns the bytes before each frame of a FeatureList: the tags and lengths of Feature, of its list and of value.

    Args:
        size: of the value, in bytes; of floats all of them.
        kind: the tag of the list in the Feature.
    """
    head = b""
    for tag in (0x0A, kind, 0x0A):
        head = bytes([tag]) + varint(len(head) + size) + head
    return head


def _equal_steps(encoded: NDArray[np.uint8], head: bytes, size: int) -> NDArray[np.uint8] | None:
    """Returns the values [T, size] of a serialised FeatureList whose steps all begin with `head`; None for another."""
    if not len(encoded) or len(encoded) % (len(head) + size):
        return None
    steps = encoded.reshape(-1, len(head) + size)
    return steps[:, len(head) :] if (steps[:, : len(head)] == np.frombuffer(head, np.uint8)).all() else None


_PACKAGE: Final = "tensorflow"


def _sequence_example() -> Any:
    """Builds the message class of tensorflow.SequenceExample in a descriptor pool of its own."""
    bytes_list = _message("BytesList", _field("value", 1, FieldDescriptorProto.TYPE_BYTES, repeated=True))
    float_list = _message("FloatList", _field("value", 1, FieldDescriptorProto.TYPE_FLOAT, repeated=True))
    int64_list = _message("Int64List", _field("value", 1, FieldDescriptorProto.TYPE_INT64, repeated=True))
    kinds = [
        _field(name, number, message=message)
        for number, (name, message) in enumerate(
            {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}.items(), start=1
        )
    ]
    for kind in kinds:
        kind.oneof_index = 0
    feature = _message("Feature", *kinds)
    feature.oneof_decl.add(name="kind")
    features = _map_message("Features", "feature", "FeatureEntry", "Feature")
    feature_list = _message("FeatureList", _field("feature", 1, message="Feature", repeated=True))
    feature_lists = _map_message("FeatureLists", "feature_list", "FeatureListEntry", "FeatureList")
    sequence_example = _message(
        "SequenceExample",
        _field("context", 1, message="Features"),
        _field("feature_lists", 2, message="FeatureLists"),
    )
    file = FileDescriptorProto(name="data/tfrecord/example.proto", package=_PACKAGE, syntax="proto3")
    file.message_type.extend([bytes_list, float_list, int64_list, feature, features])
    file.message_type.extend([feature_list, feature_lists, sequence_example])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.SequenceExample"))


def _message(name: str, *fields: FieldDescriptorProto) -> DescriptorProto:
    return DescriptorProto(name=name, field=fields)


def _map_message(name: str, field: str, entry: str, value: str) -> DescriptorProto:
    """Describes a message with the one field `map<string, value>`: protobuf stores a map as repeated entries."""
    message = _message(name, _field(field, 1, message=f"{name}.{entry}", repeated=True))
    key = _field("key", 1, FieldDescriptorProto.TYPE_STRING)
    nested = message.nested_type.add(name=entry, field=[key, _field("value", 2, message=value)])
    nested.options.map_entry = True
    return message


def _field(
    name: str,
    number: int,
    kind: FieldDescriptorProto.Type = FieldDescriptorProto.TYPE_MESSAGE,
    *,
    message: str | None = None,
    repeated: bool = False,
) -> FieldDescriptorProto:
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    type_name = None if message is None else f".{_PACKAGE}.{message}"
    return FieldDescriptorProto(name=name, number=number, type=kind, label=label, type_name=type_name)


_SequenceExample: Final = _sequence_example()
