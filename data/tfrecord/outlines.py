"""All frames of a shard found at once: where the feature lists of every tf.train.SequenceExample lie.

A frame is one bytes value, so with its three tags and lengths every frame of a list takes the same number of bytes: the
offset of a list gives the offsets of all its frames. numpy finds the lists of all records together. A record with
another layout, or with a fault, is left to protobuf (data/tfrecord/examples.py). No input makes a function of this
module raise.

Shapes   N records   L those looked at   F frames of all   D bytes of a frame, all features side by side
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from data.schema import Schema
from data.tfrecord.examples import frame_head
from data.tfrecord.framing import Bytes, Integers, Records, gather
from data.tfrecord.lockstep import copy_bytes, messages

_MAX_LISTS: Final = 16  # feature lists of a record; a record with more is left to protobuf


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """Where the parts of each record lie in the buffer."""

    found_N: NDArray[np.bool_]  # False: the record has another layout
    begin_N: Integers  # offset of the first entry of the context
    end_N: Integers  # offset of the byte after its last entry
    list_starts: dict[str, Integers]  # offset of the feature list by name, [N]
    num_frames_N: Integers  # 0 where not found

    @classmethod
    def of(cls, records: Records, schema: Schema) -> Self:
        """Finds the records that are a context and then feature lists, those of the schema with equally many frames."""
        buffer, stop_N = records.buffer, records.stop_N
        begin_N, end_N, found_N = messages(buffer, records.start_N, 0x0A)
        at_N, lists_stop_N, has_lists_N = messages(buffer, end_N, 0x12)
        found_N &= has_lists_N & (lists_stop_N == stop_N)
        lists = _feature_lists(buffer, at_N, stop_N, found_N, schema)
        num_frames_N = np.zeros(len(stop_N), np.int64)
        for number, (name, width) in enumerate(schema.features.items()):
            head = frame_head(width)
            start_N, list_stop_N = lists[name]
            num_N, rest_N = np.divmod(list_stop_N - start_N, len(head) + width)
            found_N &= (rest_N == 0) & (num_N > 0) & ((num_N == num_frames_N) | (number == 0))
            num_frames_N = num_N * found_N
            head_F = gather(buffer, f"S{len(head)}", _frame_starts(start_N, num_frames_N, len(head) + width))
            found_N[np.repeat(np.arange(len(found_N)), num_frames_N)[head_F != head]] = False
        return cls(
            found_N=found_N,
            begin_N=begin_N,
            end_N=end_N,
            list_starts={name: start_N for name, (start_N, _) in lists.items()},
            num_frames_N=num_frames_N * found_N,
        )

    def copied(self, buffer: Bytes, schema: Schema) -> tuple[Bytes, Integers]:
        """Copies the first `schema.max_frames` frames of all records.

        Returns:
            uint8 frames [F, D] and their offsets [N + 1]. A record that was not found has rows too, as many as the
            caller wrote into `num_frames_N`; their values are undefined.
        """
        num_N = np.minimum(self.num_frames_N, schema.max_frames)
        offsets = np.append(0, np.cumsum(num_N))
        frames_FD = np.empty((offsets[-1], schema.width), np.uint8)
        num_N *= self.found_N
        for (name, columns), width in zip(schema.columns.items(), schema.features.values(), strict=True):
            head = len(frame_head(width))
            start_F = _frame_starts(self.list_starts[name] + head, num_N, head + width)
            copy_bytes(buffer, start_F, _frame_starts(offsets[:-1], num_N, 1), frames_FD[:, columns])
        return frames_FD, offsets


def _feature_lists(
    buffer: Bytes, at_N: Integers, stop_N: Integers, found_N: NDArray[np.bool_], schema: Schema
) -> dict[str, Integers]:
    """Finds the feature lists of the schema; clears `found_N` where a list comes twice or the last ends too early.

    Args:
        buffer: the shard.
        at_N: offset of the first entry of each record's FeatureLists.
        stop_N: offset of the byte after the record.
        found_N: the records to look at.
        schema: the feature lists to find.

    Returns:
        [2, N] by name: the offset of the list and the offset of the byte after it; -1 where there is no such list.
    """
    lists = {name: np.full((2, len(stop_N)), -1) for name in schema.features}
    for _ in range(_MAX_LISTS):
        row_L = np.flatnonzero(found_N & (at_N < stop_N))
        if not len(row_L):
            break
        key_L, entry_stop_L, is_entry_L = messages(buffer, at_N[row_L], 0x0A)
        key_L, key_stop_L, has_key_L = messages(buffer, key_L, 0x0A)
        list_L, list_stop_L, has_list_L = messages(buffer, key_stop_L, 0x12)
        sound_L = is_entry_L & has_key_L & has_list_L & (list_stop_L == entry_stop_L)
        for name, spans_2N in lists.items():
            key = schema.key(name).encode()
            named_L = (key_stop_L - key_L == len(key)) & (gather(buffer, f"S{len(key)}", key_L) == key)
            sound_L &= ~named_L | (spans_2N[0, row_L] < 0)
            spans_2N[:, row_L[named_L]] = list_L[named_L], list_stop_L[named_L]
        found_N[row_L] = sound_L
        at_N[row_L] = list_stop_L
    found_N &= at_N == stop_N  # offsets only grow, so a record that ends here was never read beyond its end
    return lists


def _frame_starts(first_N: Integers, num_N: Integers, stride: int) -> Integers:
    """Returns the offsets [F] of all frames: in each record `num_N` of them from `first_N` on, `stride` bytes apart."""
    before_N = np.cumsum(num_N) - num_N
    return np.repeat(first_N - before_N * stride, num_N) + np.arange(num_N.sum()) * stride
