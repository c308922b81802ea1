"""Teacher predictions: a model's predictions of training videos, for another model to learn from (`loss.distill`).

They are a safetensors file, which

    python -m tuner.predict MODEL_DIR --data 'train*.tfrecord' --output teacher.safetensors [--top-k 50]

writes:

    ids            uint8 [N, W]     of the videos, padded with zero bytes, in ascending order, each once
    classes        int32 [N, K]     the most probable classes of each video, the most probable first
    probabilities  float16 [N, K]   of these classes; every other class counts as 0

The metadata name the checksum of all this, the format, the number of classes, the model and the data that the model
was trained on. Reading the file runs no code.

Shapes   N videos   W bytes of the longest id   K classes listed for a video
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.retry import text_of
from tuner.errors import ConfigError

FORMAT = "teacher-2"
FORMATS = ("teacher-1", FORMAT)  # that are read; the first one has no checksum
TOP_K = 50  # as the winners of 2017 and 2018 used
SUFFIX = ".safetensors"
CHECKSUM = "crc32c"  # its key in the metadata
AGAIN = "write it with `python -m tuner.predict MODEL_DIR --data SHARDS --output FILE.safetensors`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The contents of a file of teacher predictions."""

    ids: NDArray[np.bytes_]  # [N], ascending
    classes_NK: NDArray[np.int32]
    probabilities_NK: NDArray[np.float16]
    model: Mapping[str, Any]  # the model that made them: experiment, search, members by number, data_fingerprint

    def rows(self, ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """The row of each of these videos; -1 where the teacher has no prediction of it."""
        return rows_in(self.ids, ids)


def write(
    path: Path,
    ids: Iterable[bytes],
    classes_NK: NDArray[np.int32],
    probabilities_NK: NDArray[np.float16],
    *,
    num_classes: int,
    model: Mapping[str, Any],
) -> None:
    """Write a file of teacher predictions. Where a video occurs twice, its first row is written.

    Args:
        path: of the file.
        ids: of the videos, in any order; none ends with a zero byte.
        classes_NK: the most probable first.
        probabilities_NK: of these classes.
        num_classes: of the model.
        model: what to note about the model, as plain values.
    """
    unique, rows = np.unique(np.array(list(ids), np.bytes_), return_index=True)
    width = max(unique.dtype.itemsize, 1)
    tensors = {
        "ids": np.frombuffer(unique.tobytes(), np.uint8).reshape(len(unique), width),
        "classes": classes_NK.astype(np.int32)[rows],
        "probabilities": probabilities_NK.astype(np.float16)[rows],
    }
    about = {"format": FORMAT, "num_classes": str(num_classes), "model": json.dumps(dict(model))}
    metadata = {**about, CHECKSUM: _checksum(about, tensors.values())}
    path.write_bytes(save(tensors, metadata))  # save_file would make it readable by its owner only


def check(path: str | Path, num_classes: int, ids: NDArray[np.bytes_] | None = None) -> None:
    """Check a file of teacher predictions without reading the predictions.

    Args:
        path: of the file.
        num_classes: of the data.
        ids: of the training videos, each of which must have a prediction; None: not known yet.

    Raises:
        ConfigError: as `read` and `check_videos` raise it.
    """
    with _opened(path, num_classes) as file:
        known = _ids(file.get_tensor("ids")) if ids is not None else None
    if ids is not None and known is not None:
        check_videos(path, rows_in(known, ids))


def check_videos(path: str | Path, rows_N: NDArray[np.int64]) -> None:
    """Refuse a teacher that has no predictions of some training videos, given by `Teacher.rows`.

    Raises:
        ConfigError: says how many.
    """
    if missing := int((rows_N < 0).sum()):
        raise ConfigError(
            f"{path}: has no predictions of {missing:,} of the {len(rows_N):,} training videos; "
            "predict all of data.train with the teacher"
        )


def read(path: str | Path, num_classes: int) -> Teacher:
    """Read a file of teacher predictions.

    Raises:
        ConfigError: the file is missing, damaged or of another kind, or its model has another number of classes.
    """
    with _opened(path, num_classes) as file:
        ids, classes_NK, probabilities_NK = map(file.get_tensor, ("ids", "classes", "probabilities"))
        about = dict(file.metadata())
        model = json.loads(about["model"])
        checksum = about.pop(CHECKSUM, None)
    shapes = ids.dtype, ids.ndim, classes_NK.dtype, classes_NK.shape, probabilities_NK.dtype, len(ids)
    if shapes != (np.uint8, 2, np.int32, probabilities_NK.shape, np.float16, len(classes_NK)):
        raise ConfigError(f"{path}: damaged: its arrays do not fit each other; {AGAIN}")
    sealed = about["format"] != FORMATS[0] or checksum is not None
    if sealed and checksum != _checksum(about, (ids, classes_NK, probabilities_NK)):
        raise ConfigError(f"{path}: damaged: its checksum is not the one written with it; {AGAIN}")
    if not isinstance(model, dict):
        raise ConfigError(f"{path}: damaged: it does not say which model made it; {AGAIN}")
    known = _ids(ids)
    if not (known[1:] > known[:-1]).all():
        raise ConfigError(f"{path}: damaged: its videos are not in ascending order; {AGAIN}")
    if not ((probabilities_NK >= 0) & (probabilities_NK <= 1)).all():
        raise ConfigError(f"{path}: damaged: it has probabilities outside [0, 1]; {AGAIN}")
    if classes_NK.size and not 0 <= classes_NK.min() <= classes_NK.max() < num_classes:
        raise ConfigError(f"{path}: damaged: it names classes outside 0 to {num_classes - 1}; {AGAIN}")
    return Teacher(ids=known, classes_NK=classes_NK, probabilities_NK=probabilities_NK, model=model)


@contextmanager
def _opened(path: str | Path, num_classes: int) -> Iterator[Any]:
    """An open file of predictions of so many classes; errors of reading it become sentences."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in FORMATS:
                raise ConfigError(f"{path}: is not a file of teacher predictions; {AGAIN}")
            known = int(metadata["num_classes"])
            if known != num_classes:
                raise ConfigError(
                    f"{path}: the teacher has {known:,} classes, but the data has {num_classes:,}; {AGAIN}"
                )
            yield file
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as teacher predictions ({text_of(error)}); {AGAIN}") from error


def _checksum(about: Mapping[str, str], arrays: Iterable[Any]) -> str:
    """The checksum of the metadata and of the arrays, in the order in which the file's description names them."""
    checksum = crc32c(json.dumps(about, sort_keys=True).encode())
    for array in arrays:
        checksum = crc32c(np.ascontiguousarray(array), checksum)
    return str(checksum)


def rows_in(known: NDArray[np.bytes_], ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Where each id is in `known`, which is sorted; -1 where it is not."""
    if not len(known):
        return np.full(len(ids), -1)
    rows = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[rows] == ids, rows, -1)


def _ids(ids_NW: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.frombuffer(ids_NW.tobytes(), f"S{ids_NW.shape[1]}")
