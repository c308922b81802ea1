"""Load an exported model from its folder.

    loaded = load_model("exports/fused_mlp-20260102-030405-0001")
    logits_BC = loaded.model(features_BD)

`load_model` reads config.json and model.safetensors, which cannot contain code. It needs torch and safetensors, but not
yaml, pydantic, ray, mlflow or optuna. It does not read the .pt2 files, because torch.export.load unpickles them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import models
from data.batches import Batch
from data.cache.progress import BuildProgress
from data.cache.recipe import find_shards
from data.cache.store import Cache, default_directory, open_cache
from data.schema import MAX_FRAMES, Schema
from models import FeatureStatistics, Sizes
from models.ensemble import Ensemble
from tuner.errors import ConfigError, ModelFolderError, first_line
from tuner.export.layout import CHECKSUMS, CLASSES, CONFIG, WEIGHTS, check_file, read_checksums, read_config
from tuner.redact import refuse_credentials
from tuner.storage.place import Place
from tuner.storage.stores import at, place
from tuner.training import vocabulary
from tuner.training.precision import Precision, forward

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model that was loaded from its folder and is ready to score videos."""

    model: nn.Module  # in eval mode: float features [B, D] -> logits [B, C], or frames and mask -> logits [B, C]
    config: dict[str, Any]  # config.json
    schema: Schema  # what shards must hold: the features in the order of the model's columns, and the classes
    dtype: Dtype  # features are rounded to this type, as in training
    precision: Precision  # of the matrix products, as in training
    class_names: list[str] | None  # by class index; None if it was exported without a vocabulary

    def logits(self, batch: Batch) -> Tensor:
        """Score a batch on the batch's device, in the model's precision; returns logits [B, C]."""
        return forward(self.model, batch, self.precision)

    def with_keys(self, keys: Sequence[tuple[str, str]]) -> ExportedModel:
        """Returns the model for shards whose records have other keys than those that it was trained with.

        Raises:
            ConfigError: a key names nothing that the model reads.
        """
        try:
            schema = replace(self.schema, keys={**self.schema.keys, **dict(keys)})
        except ValueError as error:
            raise ConfigError(f"--keys: {error}") from None
        return replace(self, schema=schema)

    def open(
        self,
        patterns: str | Sequence[str],
        progress: Callable[[BuildProgress], None] | None = None,
        require_labels: bool = True,
    ) -> Cache:
        """Open the cache of decoded shards; the shards are decoded first if this node has no such cache.

        Raises:
            ConfigError: a pattern contains credentials, which the cache would store.
            DataError: no shard matches, or a shard is damaged or does not fit the model.
        """
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            refuse_credentials(pattern, "--data", "set them in the environment (AWS_ACCESS_KEY_ID and the like)")
        return open_cache(
            find_shards(patterns),
            self.schema,
            default_directory(),
            dtype=self.dtype,
            progress=progress,
            require_labels=require_labels,
        )


def load_model(folder: Place | str, device: torch.device | str = "cpu") -> ExportedModel:
    """Load an exported model.

    Args:
        folder: the model folder, or its URL.
        device: where the model is placed.

    Raises:
        ModelFolderError: the folder is incomplete, damaged, or was written by a newer version of this program.
        ConfigError: `folder` is a URL that cannot be read.
    """
    source = place(folder, "model folder") if isinstance(folder, str) else folder
    with at(source).download((CONFIG, CHECKSUMS, WEIGHTS, CLASSES)) as local:
        return _load_model(local, torch.device(device))


def _load_model(folder: Path, device: torch.device) -> ExportedModel:
    config = read_config(folder)
    sums = read_checksums(folder)
    for name in (CONFIG, WEIGHTS, *({CLASSES} & sums.keys())):
        check_file(folder, name, sums)
    try:
        features = {feature["name"]: feature["width"] for feature in config["features"]}
        schema = Schema(
            features=features,
            num_classes=config["num_classes"],
            level=config.get("level", "video"),  # format version 2 has no levels: all its models take whole videos
            max_frames=config.get("max_frames", MAX_FRAMES),
            keys=config.get("keys", {}),
        )
        model = _model_of(config["model"], Sizes.of(schema))
        model.load_state_dict(load_file(folder / WEIGHTS))
        for name, known in (("dtype", get_args(Dtype)), ("precision", get_args(Precision))):
            if config[name] not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but got {config[name]!r}")
        return ExportedModel(
            model=model.to(device).eval(),
            config=config,
            schema=schema,
            dtype=config["dtype"],
            precision=config["precision"],
            class_names=vocabulary.read(folder / CLASSES, config["num_classes"]) if CLASSES in sums else None,
        )
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise ModelFolderError(f"{folder}: cannot build the model from {CONFIG} and {WEIGHTS} ({reason})") from error


def _model_of(config: Mapping[str, Any], sizes: Sizes) -> nn.Module:
    """Build the model that config.json describes, before its weights are loaded."""
    if config["kind"] != "ensemble":
        return model_without_weights(models.configured(config), sizes)
    members = [_model_of(member["model"], sizes) for member in config["members"]]
    return Ensemble(members, [member["weight"] for member in config["members"]])


def model_without_weights(config: models.ModelConfig, sizes: Sizes) -> nn.Module:
    """Build a model whose weights and statistics are placeholders that load_state_dict replaces."""
    # A separate generator: loading a model must not change the random numbers of a training that runs beside it.
    return models.build(config, sizes, FeatureStatistics.empty(sizes), torch.Generator())
