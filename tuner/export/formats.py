"""What an export format is: the function that writes its files into a model folder, and how they are checked.

`tuner.export.writer.FORMATS` lists all formats. A new one is a file with a constant `FORMAT`, and a line in that list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.schema import Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything that is written to a model folder; each format writes a part of it."""

    model: nn.Module  # in eval mode, on the CPU, without gradients
    schema: Schema  # what the model takes
    config: Mapping[str, Any]  # config.json
    scores: Mapping[str, Mapping[str, float]]  # by split
    statistics: Mapping[str, Tensor]  # of the training videos: num_videos, mean, variance, label_counts, rated_counts
    trial_yaml: str  # the trial as an experiment
    class_names: Sequence[str] | None  # by class index; None: the experiment names no vocabulary
    float16: bool  # whether the weight matrices are stored as float16


def _always(contents: Contents) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One form in which a model, or a fact about it, is stored."""

    name: str  # of its file, as messages name it
    write: Callable[[Path, Contents], None]  # writes its files into the folder
    # Reads the files of the folder and returns what gives the model's logits; None: there are no logits to compare.
    read_back: Callable[[Path], Callable[..., Tensor]] | None = None
    applies: Callable[[Contents], bool] = _always  # whether the folder gets these files
