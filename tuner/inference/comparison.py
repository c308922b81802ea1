"""Compare the probabilities in a file of predictions with those that a model gives.

Shapes   B videos in the batch   C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.batches import Batches
from data.cache.store import Cache
from tuner.errors import ConfigError
from tuner.export.loader import ExportedModel
from tuner.inference.predictions import StoredPredictions, printable

NUM_NAMED = 5  # videos that the report names among those that differ, are missing or are unknown


class Difference(NamedTuple):
    """The class of a video on which the file and the model differ most."""

    size: float
    video: bytes
    label: int
    stored: float | None  # the probability in the file; None: the class is not listed
    at_most: float  # the lowest listed probability of the video, which bounds a class that is not listed
    model: float  # the probability that the model gives

    def __str__(self) -> str:
        """A line of the report."""
        stored = f"{self.stored:.6g}" if self.stored is not None else f"not listed, so at most {self.at_most:.6g}"
        return f"video {printable(self.video)}, class {self.label}: {stored} in the file, {self.model:.6g} by the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far the probabilities of a file are from those of a model."""

    num_videos: int  # compared
    differing: int  # of these, the videos that differ by more than the tolerance
    largest: list[Difference]  # of the videos that differ most, largest first
    missing: list[bytes]  # videos of the shards that the file lacks
    unknown: list[bytes]  # videos of the file that the shards lack

    @property
    def agrees(self) -> bool:
        """Whether no video differs, is missing or is unknown."""
        return not (self.differing or self.missing or self.unknown)


def compare(
    stored: StoredPredictions, exported: ExportedModel, cache: Cache, batches: Batches, tolerance: float
) -> Comparison:
    """Compare the probabilities in a file with those of a model, for every video and class.

    The model must not give a class that is not listed a higher probability than the lowest one listed for the video.

    Args:
        stored: the content of the file.
        exported: the model.
        cache: the videos.
        batches: all videos of `cache`, in order.
        tolerance: the largest difference of a probability that counts as equal.

    Raises:
        ConfigError: the file names a class that the model lacks, or contains none of the videos.
    """
    if stored.classes.max(initial=0) >= exported.schema.num_classes:
        raise ConfigError(
            f"{stored.path}: names class {stored.classes.max()}, but the model has only {exported.schema.num_classes}"
        )
    ids = cache.ids.tolist()
    known = set(ids)
    missing = [id for id in ids if id not in stored.rows]
    if len(missing) == len(ids):
        raise ConfigError(
            f"{stored.path}: contains none of the {len(ids):,} videos of the shards, such as {printable(ids[0])}"
        )
    largest: list[Difference] = []
    differing = 0
    for batch in batches.epoch(0):
        model_BC = exported.logits(batch).double().sigmoid().cpu().numpy()
        found = _differences(stored, [ids[row] for row in batch.rows.tolist()], model_BC)
        differing += sum(difference.size > tolerance for difference in found)
        largest = sorted([*largest, *found], key=lambda difference: -difference.size)[:NUM_NAMED]
    return Comparison(
        num_videos=len(ids) - len(missing),
        differing=differing,
        largest=largest,
        missing=missing,
        unknown=[id for id in stored.rows if id not in known],
    )


def _differences(stored: StoredPredictions, ids: Sequence[bytes], model_BC: NDArray[np.float64]) -> list[Difference]:
    """The largest difference of each video that the file contains."""
    num_videos, num_classes = model_BC.shape
    listed = stored.of(ids)
    lowest_B = np.ones(num_videos)
    np.minimum.at(lowest_B, listed.videos, listed.probabilities)
    lowest_B[np.bincount(listed.videos, minlength=num_videos) == 0] = 0  # a video without listed classes
    stored_BC = np.full((num_videos, num_classes), np.nan)
    stored_BC[listed.videos, listed.classes] = listed.probabilities
    differences_BC = np.where(
        np.isnan(stored_BC), (model_BC - lowest_B[:, None]).clip(min=0), np.abs(model_BC - stored_BC)
    )
    found = []
    for video, label in enumerate(differences_BC.argmax(axis=1).tolist()):
        if ids[video] in stored.rows:
            value = stored_BC[video, label]
            listed_value = None if np.isnan(value) else float(value)
            size, model = float(differences_BC[video, label]), float(model_BC[video, label])
            found.append(Difference(size, ids[video], label, listed_value, float(lowest_B[video]), model))
    return found


def describe(path: Path, comparison: Comparison, tolerance: float) -> list[str]:
    """The lines of the report; the first one says whether the file agrees with the model."""
    compared = f"{comparison.num_videos:,} videos compared"
    largest = comparison.largest[0].size
    if comparison.agrees:
        return [f"{path} agrees with the model: {compared}, the largest difference of a probability is {largest:.2g}"]
    lines = [
        f"{path} does not agree with the model: {compared}, "
        f"{comparison.differing:,} differ by more than {tolerance:g}, "
        f"{len(comparison.missing):,} missing, {len(comparison.unknown):,} unknown"
    ]
    lines += [f"  {difference}" for difference in comparison.largest if difference.size > tolerance]
    for what, ids in (("missing from the file", comparison.missing), ("not in the shards", comparison.unknown)):
        if ids:
            more = ", ..." if len(ids) > NUM_NAMED else ""
            lines.append(f"  {what}: {', '.join(map(printable, ids[:NUM_NAMED]))}{more}")
    return lines
