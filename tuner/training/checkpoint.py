"""A checkpoint is a trial's state on disk: one directory, written whole or not at all, read without unpickling.

    model.safetensors   weights and buffers
    training.pt         optimizer, epoch, random number generators (tensors and plain values: `weights_only`)
    checkpoint.json     format version, the trial's settings, size and CRC32C of the two files above, its own CRC32C

A search stores it as trials/<trial>/epoch-0004 in its folder.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import crc32c
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import UnreachableError
from data.retry import retried, text_of
from tuner.errors import CheckpointDamaged, CheckpointError
from tuner.storage.place import Place
from tuner.storage.stores import at
from tuner.training.config import differences

T = TypeVar("T")

VERSION = 3
# Settings that older checkpoints of this version lack, by the ends of their paths, and the values that they imply. The
# value of every other missing setting is None.
LATER: dict[str, Any] = {
    "loss.kind": "sigmoid_cross_entropy",
    "loss.layers": {},
    "training.accumulate": 1,
    "training.cuda_graph": "auto",
    "training.frames": {"sampling": "all", "count": 30},
}
# A disk with less free space counts as full.
MIN_FREE_BYTES = 1 << 20
WEIGHTS, TRAINING, MANIFEST = FILES = "model.safetensors", "training.pt", "checkpoint.json"


def save(directory: Place, *, model: dict[str, Tensor], training: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint; `directory` appears whole or not at all (`Location.publish`).

    The files are not fsynced; the checksums find what a power cut damages.

    Raises:
        OSError: the directory cannot be written, or the disk is full.
    """
    with at(directory).publish(last=MANIFEST) as staging:
        try:
            save_file({name: tensor.contiguous() for name, tensor in model.items()}, staging / WEIGHTS)
            torch.save(training, staging / TRAINING)
        except (SafetensorError, RuntimeError) as error:  # neither library raises an OSError for a full disk
            if shutil.disk_usage(staging).free >= MIN_FREE_BYTES:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        files = {name: _describe(staging / name) for name in (WEIGHTS, TRAINING)}
        (staging / MANIFEST).write_text(
            sealed({"version": VERSION, "settings": settings, "files": files}), encoding="utf-8"
        )


def load(directory: Path, *, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (model, training), on the CPU.

    Raises:
        CheckpointDamaged: a file is missing, cut short or changed.
        UnreachableError: a file cannot be read, which says nothing about its bytes.
        CheckpointError: the checkpoint has other settings than `settings`.
    """
    manifest = manifest_of(directory, settings)
    weights = _weights(directory, manifest)
    _check(directory, TRAINING, manifest)
    try:
        training = torch.load(directory / TRAINING, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnreachableError(str(directory / TRAINING), f"cannot be read: {text_of(error)}") from error
    except Exception as error:  # torch raises many types for a file that it did not write
        raise CheckpointError(f"{directory / TRAINING}: does not hold the state of a training") from error
    return weights, training


def load_weights(directory: Path, *, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Read only the weights and buffers, on the CPU.

    Raises:
        CheckpointDamaged: the file is missing, cut short or changed.
        CheckpointError: the checkpoint has other settings than `settings`.
    """
    return _weights(directory, manifest_of(directory, settings))


def manifest_of(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read checkpoint.json and compare its settings with `settings`.

    Raises:
        CheckpointDamaged: the file is missing or changed.
        CheckpointError: settings differ, and the message says which; or the checkpoint has another format version.
    """
    manifest = read_manifest(directory)
    differing = sorted(differences(manifest["settings"], json.loads(json.dumps(settings)), implied=_implied))
    if differing:
        raise CheckpointError(f"{directory}: the checkpoint has other settings: {'; '.join(differing)}")
    return manifest


def check(directory: Path, *, weights_only: bool = False) -> None:
    """Verify the checksums of all files, or of the weights alone.

    Raises:
        CheckpointDamaged: a file is missing, cut short or changed.
        CheckpointError: the checkpoint has another format version.
    """
    manifest = read_manifest(directory)
    for name in (WEIGHTS,) if weights_only else (WEIGHTS, TRAINING):
        _check(directory, name, manifest)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read checkpoint.json and verify its own checksum.

    Raises:
        CheckpointDamaged: the file is missing or changed.
        UnreachableError: the file cannot be read.
        CheckpointError: the checkpoint has another format version.
    """
    path = directory / MANIFEST
    try:
        text = _read(path, path.read_text)
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["version"]
        if text != sealed(manifest) and ("crc32c" in manifest or version == VERSION):
            raise ValueError("its checksum is not the one written with it")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"{path}: not readable ({error})") from error
    if version != VERSION:
        raise CheckpointError(f"{path}: version {version}, but this program reads version {VERSION}")
    if not {"settings", "files"} <= manifest.keys():
        raise CheckpointDamaged(f"{path}: damaged (settings or files are missing from it)")
    return manifest


def sealed(manifest: dict[str, Any]) -> str:
    """The text of checkpoint.json with its own checksum, so that a damaged setting is not taken for another value."""
    content = json.dumps({key: value for key, value in manifest.items() if key != "crc32c"}, indent=1)
    return json.dumps({**json.loads(content), "crc32c": crc32c.crc32c(content.encode())}, indent=1)


def prepare_folder(
    directory: Path, *, settings: dict[str, Any], resume: bool, fresh: bool, print_line: Callable[[str], None]
) -> Path | None:
    """Prepare the folder into which `python -m tuner.train --save` writes checkpoints.

    An existing folder is never overwritten or deleted.

    Args:
        directory: the folder.
        settings: of the trial that is to be trained.
        resume: continue the checkpoint in the folder.
        fresh: rename an existing folder.
        print_line: prints the new name of the folder.

    Returns:
        The checkpoint to resume from; None: the training begins with epoch 1.

    Raises:
        CheckpointError: the checkpoint to resume is missing or belongs to other settings; or the folder exists, and
            neither `resume` nor `fresh` says what to do with it.
    """
    if not directory.exists():
        if resume:
            raise CheckpointError(f"{directory}: there is no checkpoint to resume; leave --resume out to begin one")
        return None
    if resume:
        try:
            manifest_of(directory, settings)
        except CheckpointDamaged:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}\nset these values back to resume, or use --fresh, which renames the folder and starts again"
            ) from error
        return directory
    if not fresh:
        raise CheckpointError(f"{directory} exists: --resume continues it, --fresh renames it and starts again")
    renamed = next(path for n in count(1) if not (path := directory.with_name(f"{directory.name}.{n}")).exists())
    directory.rename(renamed)
    print_line(f"renamed {directory} to {renamed}")
    return None


def folder_name(epoch: int) -> str:
    """The name of the folder of an epoch's checkpoint, in the folder of its trial; the names sort by epoch."""
    return f"epoch-{epoch:04d}"


def epoch_of(directory: Place) -> int:
    """The epoch after which a checkpoint was written, from the name of its folder."""
    return int(directory.name.removeprefix("epoch-"))


def discard_training_state(directory: Place) -> None:
    """Delete all but the weights: a finished trial does not need the rest, two thirds of its checkpoint."""
    (directory / TRAINING).unlink(missing_ok=True)


def _implied(path: str) -> Any:
    """The value of a setting that the checkpoint lacks, because it was written before the setting existed."""
    return next((value for end, value in LATER.items() if f".{path}".endswith(f".{end}")), None)


def _weights(directory: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    _check(directory, WEIGHTS, manifest)
    try:
        weights: dict[str, Tensor] = _read(directory / WEIGHTS, lambda: load_file(directory / WEIGHTS))
    except SafetensorError as error:
        raise CheckpointDamaged(f"{directory / WEIGHTS}: not readable ({error})") from error
    return weights


def _describe(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum = crc32c.crc32c(chunk, checksum)
    return {"bytes": path.stat().st_size, "crc32c": checksum}


def _read(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns, tried again while the way to the file is broken, which is no damage.

    Raises:
        FileNotFoundError: there is no such file.
        UnreachableError: the file cannot be read.
    """
    try:
        return retried(read, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        raise UnreachableError(str(path), f"cannot be read: {text_of(error)}") from error


def _check(directory: Path, name: str, manifest: dict[str, Any]) -> None:
    path = directory / name
    try:
        found = _read(path, lambda: _describe(path))
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path}: missing") from None
    if found != manifest["files"].get(name):
        raise CheckpointDamaged(f"{path}: damaged (its size or checksum is not the one written with it)")
