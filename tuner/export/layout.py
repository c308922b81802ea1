"""The layout of a model folder: its file names, its format version and its checksums.

model.safetensors        weights and buffers; of an ensemble, those of all members
model.pt2                the same model, written by torch.export: it runs with PyTorch alone, for any batch size
encoder.safetensors  encoder.pt2    of a contrastive trial: the encoder alone, features -> embeddings
probe.safetensors        of a contrastive trial: the linear layer, embeddings -> logits; model.* holds both parts
config.json              what `load_model` needs to build the model, and where the model comes from
statistics.safetensors   mean, variance and label counts of the training videos
trial.yaml               the trial as an experiment: `python -m tuner.train --file trial.yaml` trains it again
                         (of an ensemble: one experiment for each member)
classes.csv              Index,Name; written if the experiment names a vocabulary
metrics.json  README.md  the scores and the model card
SHA256SUMS               checksums of all other files: `sha256sum -c SHA256SUMS`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.errors import ModelFolderError, first_line
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)  # version 3 added ensembles
WEIGHTS, PROGRAM, CONFIG, STATISTICS = "model.safetensors", "model.pt2", "config.json", "statistics.safetensors"
ENCODER, ENCODER_PROGRAM, PROBE = "encoder.safetensors", "encoder.pt2", "probe.safetensors"
TRIAL, CLASSES, METRICS, CARD, CHECKSUMS = "trial.yaml", "classes.csv", "metrics.json", "README.md", "SHA256SUMS"


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json and check its format version.

    Raises:
        ModelFolderError: config.json is missing or damaged, or its format version is not supported.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version = config["format"]
        if not isinstance(config, dict):
            raise TypeError("it must be an object")
    except OSError as error:
        raise ModelFolderError(f"{folder}: is not an exported model ({CONFIG}: {error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = first_line(error)
        raise ModelFolderError(f"{folder / CONFIG}: is damaged or not of an exported model ({reason})") from error
    if version not in READABLE_VERSIONS:
        raise ModelFolderError(
            f"{folder}: was written in format {version}, but this version of the program reads formats "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; load it with the version that wrote it"
        )
    return config


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of the folder to SHA256SUMS."""
    sums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS.

    Returns:
        The digest of each file, by file name.

    Raises:
        ModelFolderError: the file is missing or cannot be read.
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{folder / CHECKSUMS}: is missing or unreadable; export the model again") from error
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_file(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    """Compare a file with its checksum.

    Raises:
        ModelFolderError: the file is missing or its checksum differs.
    """
    path = folder / name
    if not path.is_file():
        raise ModelFolderError(f"{path}: is missing; export the model again")
    if sums.get(name) != sha256(path):
        raise ModelFolderError(
            f"{path}: is damaged (its checksum differs from the one in {CHECKSUMS}); export the model again"
        )


def check_target(folder: Place, search: SearchHistory, trial: TrialHistory | None) -> bool:
    """Check that an export may be written to `folder`.

    Args:
        folder: the target of the export.
        search: the search that the model comes from.
        trial: the trial to export; None: an ensemble.

    Returns:
        Whether an export of the same trial (or of an ensemble of the same search) exists there and will be replaced.

    Raises:
        ModelFolderError: something else exists there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False  # an empty folder may be replaced
    try:
        existing = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        exported = f"trial {existing['trial']['number']:03d}" if "trial" in existing else describe_trial(None)
        same_trial = existing.get("trial", {}).get("id") == (trial.id if trial else None)
        same = existing["search"] == search.id and same_trial
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelFolderError(f"{folder} exists and is not an exported model: choose another folder") from None
    if not same:
        raise ModelFolderError(
            f"{folder} exists and holds {exported} of search {existing['search']}: "
            f"remove it, or choose another folder for {describe_trial(trial)} of search {search.id}"
        )
    return True


def describe_trial(trial: TrialHistory | None) -> str:
    """Name what is exported: a trial, or (None) an ensemble."""
    return "an ensemble" if trial is None else f"trial {trial.number:03d}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
