"""A trial's state on disk: one directory, written whole or not at all, read without unpickling.

    model.safetensors   weights and buffers
    training.pt         optimizer, epoch, random number generators (tensors and plain values: `weights_only`)
    checkpoint.json     format version, the settings that shaped it, size and CRC32C of the two files above

The trial keeps it as trials/<trial>/epoch-0004 in the search's folder.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import crc32c
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuner.errors import CheckpointError
from tuner.paths import Place

VERSION = 2
WEIGHTS, TRAINING, MANIFEST = FILES = "model.safetensors", "training.pt", "checkpoint.json"


def save(directory: Path, *, model: dict[str, Tensor], training: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint; `directory` appears in one rename.

    Nothing waits for the disk: what a power cut may then damage, the checksums find.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        save_file({name: tensor.contiguous() for name, tensor in model.items()}, staging / WEIGHTS)
        torch.save(training, staging / TRAINING)
        files = {name: _describe(staging / name) for name in (WEIGHTS, TRAINING)}
        manifest = {"version": VERSION, "settings": settings, "files": files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if directory.exists():
            shutil.rmtree(directory)
        staging.rename(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def load(directory: Path, *, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (model, training) back, on the CPU.

    Raises:
        CheckpointError: files are missing or damaged, or other settings than `settings` shaped them.
    """
    weights = load_weights(directory, settings=settings)
    _check(directory, TRAINING, read_manifest(directory))
    try:
        training = torch.load(directory / TRAINING, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch finds wrong with a file from elsewhere: it may hold anything
        raise CheckpointError(f"{directory / TRAINING}: holds no state of a training") from error
    return weights, training


def load_weights(directory: Path, *, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The weights and buffers alone, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, or other settings than `settings` shaped it.
    """
    manifest = read_manifest(directory)
    differing = differences(manifest["settings"], json.loads(json.dumps(settings)))
    if differing:
        raise CheckpointError(f"{directory}: other settings shaped this checkpoint: {'; '.join(differing)}")
    _check(directory, WEIGHTS, manifest)
    try:
        weights: dict[str, Tensor] = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS}: not readable ({error})") from error
    return weights


def is_whole(directory: Place) -> bool:
    """Whether the weights are there to their last byte: a copy that a killed worker left half done is not.

    Damage is not looked for; who loads the weights finds it.
    """
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        return bool((directory / WEIGHTS).stat().st_size == files[WEIGHTS]["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_manifest(directory: Path) -> dict[str, Any]:
    """What checkpoint.json says.

    Raises:
        CheckpointError: it is missing, unreadable or of another version.
    """
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error
    if version != VERSION:
        raise CheckpointError(f"{path}: version {version}, but this program reads version {VERSION}")
    if not {"settings", "files"} <= manifest.keys():
        raise CheckpointError(f"{path}: damaged (settings or files are missing from it)")
    return manifest


def discard_training_state(directory: Place) -> None:
    """Keep the weights alone: what a finished trial no longer needs is two thirds of its checkpoint."""
    (directory / TRAINING).unlink(missing_ok=True)


def differences(stored: Any, given: Any, path: str = "") -> list[str]:
    """Where two nested settings differ, as `path: stored -> given`."""
    if isinstance(stored, dict) and isinstance(given, dict):
        lines = []
        for key in sorted(stored.keys() | given.keys()):
            lines += differences(stored.get(key), given.get(key), f"{path}.{key}" if path else key)
        return lines
    return [] if stored == given else [f"{path}: {stored} -> {given}"]


def _describe(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum = crc32c.crc32c(chunk, checksum)
    return {"bytes": path.stat().st_size, "crc32c": checksum}


def _check(directory: Path, name: str, manifest: dict[str, Any]) -> None:
    path = directory / name
    if not path.exists():
        raise CheckpointError(f"{path}: missing")
    if _describe(path) != manifest["files"].get(name):
        raise CheckpointError(f"{path}: damaged (its size or checksum is not the one written with it)")
