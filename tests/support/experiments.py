"""Texts of experiments.yaml, and what the tests of tuner/config do with them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tuner.config.experiment import Experiment
from tuner.errors import ConfigError

ROOT = Path(__file__).parents[2]

VALID = """\
default: tiny
experiments:
  tiny:
    data:
      train: t*.tfrecord
      validate: v*.tfrecord
    model: {kind: fused_mlp, towers: {mean_rgb: 8, mean_audio: 8}, dropout: {uniform: [0.2, 0.7]}}
    optimizer:
      kind: adam
      learning_rate: {loguniform: [1e-4, 1e-2]}
    loss:
      l1: {choice: [0, {loguniform: [1e-3, 10]}]}
    training: {batch_size: 16, epochs: 2}
    search: {trials: 2}
  broken:
    data: ${UNSET_VARIABLE}
"""

CHOICE_OF_BLOCKS = VALID.replace(
    """\
    optimizer:
      kind: adam
      learning_rate: {loguniform: [1e-4, 1e-2]}
""",
    """\
    optimizer:
      choice:
        - {kind: adam, learning_rate: {loguniform: [1e-4, 1e-2]}}
        - kind: sgd
          learning_rate: 0.1
          momentum: {uniform: [0.5, 0.9]}
""",
)

Load = Callable[..., Experiment]


def mistakes(load_text: Load, text: str, name: str | None = None, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_text(text, name, overrides)
    return str(raised.value).splitlines()
