"""A finished trial, or an ensemble of several -> a folder that needs nothing of the search any more.

    model.safetensors        weights and buffers; of an ensemble, those of its members side by side
    model.pt2                the same model by torch.export: runs on PyTorch alone, any number of videos at a time
    encoder.safetensors  encoder.pt2    of a contrastive trial: the encoder alone, features -> embeddings
    probe.safetensors        and the linear layer on it, embeddings -> logits; model.* is both in one
    config.json              what `load_model` needs to build it again, and where it comes from
    statistics.safetensors   mean, variance and label counts of the training videos
    trial.yaml               the trial as an experiment: `python -m tuner.train --file trial.yaml` trains it again
                             (of an ensemble an experiment for each member)
    classes.csv              Index,Name, where the experiment names a vocabulary
    metrics.json  README.md  the model card
    SHA256SUMS               of all these: `sha256sum -c SHA256SUMS`

`load_model` reads config.json and model.safetensors, which can hold no code, and takes torch and safetensors only: no
yaml, ray, mlflow, optuna, pydantic. It leaves the .pt2 files alone, since torch.export.load unpickles what they hold.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

import models
from data.batches import Batch, Batches
from data.cache import store as data_cache
from data.cache.store import BuildProgress, Cache
from data.errors import DataError
from data.frames import decode
from data.schema import MAX_FRAMES, Schema
from models import FeatureStatistics, FusedMLP, Sizes
from models.ensemble import Ensemble
from tuner.errors import CheckpointDamaged, CheckpointError, ModelFolderError, NothingToExport, SearchError
from tuner.export import model_card
from tuner.redact import refuse_credentials
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.storage.stores import at
from tuner.training import checkpoint, vocabulary
from tuner.training.config import without_effect
from tuner.training.dataset import feature_statistics, sizes_of
from tuner.training.precision import Precision, forward

if TYPE_CHECKING:  # a folder is loaded without pydantic and yaml
    from tuner.config.experiment import Experiment

VERSION = 3
READ = (2, 3)  # 3 has ensembles as well
WEIGHTS, PROGRAM, CONFIG, STATISTICS = "model.safetensors", "model.pt2", "config.json", "statistics.safetensors"
ENCODER, ENCODER_PROGRAM, PROBE = "encoder.safetensors", "encoder.pt2", "probe.safetensors"
TRIAL, CLASSES, METRICS, CARD, CHECKSUMS = "trial.yaml", "classes.csv", "metrics.json", "README.md", "SHA256SUMS"

# How far two forms of one model may differ, relative to the largest logit: float32 sums in another order.
TOLERANCE = 1e-5
# Videos that are compared: of the validation shards, where these are at hand, and random ones in two batch sizes.
REAL_ROWS, RANDOM_ROWS = 64, (1, 33)


# ------------------------------------------------------------------------------------------- out of the search's folder


def best_checkpoint(search_directory: Place, trial: TrialHistory, say: Callable[[str], None] = lambda _: None) -> Place:
    """The checkpoint of the trial's best epoch, among those that are there and whole; `say` is told of damage.

    Raises:
        NothingToExport: there is none.
    """
    kept = _checkpoints(search_directory, trial)
    scored = [epoch for epoch in kept if epoch in trial.reports]
    for epoch in sorted(scored, key=lambda epoch: (-trial.reports[epoch]["gap"], epoch)):
        try:
            with at(kept[epoch]).download((checkpoint.MANIFEST, checkpoint.WEIGHTS)) as local:
                checkpoint.check(local, weights_only=True)
            return kept[epoch]
        except CheckpointDamaged as error:
            say(str(error))
    raise NothingToExport(
        f"trial {trial.number:03d} of search {search_directory.name} has no whole checkpoint in "
        f"{_trial_directory(search_directory, trial)} (epochs it reported: {len(trial.reports)})"
    )


def load_trial(
    search_directory: Place,
    experiment: Experiment,
    trial: TrialHistory,
    device: torch.device,
    say: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """The model of the trial's best epoch, in eval mode on `device`; `say` is told of damaged checkpoints.

    Raises:
        NothingToExport: the trial has no whole checkpoint.
        CheckpointError: other settings shaped it.
    """
    return load_checkpoint(best_checkpoint(search_directory, trial, say), experiment, trial, device)


def load_checkpoint(directory: Place, experiment: Experiment, trial: TrialHistory, device: torch.device) -> nn.Module:
    """The model of one of the trial's checkpoints, in eval mode on `device`.

    Raises:
        CheckpointError: it is damaged, or other settings shaped it.
    """
    settings = experiment.trial_config(trial.values)
    model = _empty_model(settings.model, experiment.data.sizes)
    try:
        with at(directory).download((checkpoint.MANIFEST, checkpoint.WEIGHTS)) as local:
            model.load_state_dict(checkpoint.load_weights(local, settings=settings.settings))
    except RuntimeError as error:
        raise CheckpointError(f"{directory}: the weights do not fit the trial's model ({error})") from error
    return model.to(device).eval()


def epoch_of(checkpoint_directory: Place) -> int:
    """The epoch after which it was written."""
    return int(checkpoint_directory.name.removeprefix("epoch-"))


def discard_training_states(search_directory: Place, trial: TrialHistory) -> None:
    """Keep the weights of an ended trial alone: optimizer and generators are two thirds of its checkpoints."""
    for directory in _checkpoints(search_directory, trial).values():
        checkpoint.discard_training_state(directory)


def keep_statistics(search_directory: Place, statistics: FeatureStatistics) -> None:
    """Store the training statistics with a search, so that its exports need no shards."""
    (search_directory / STATISTICS).write_bytes(save(_statistics_tensors(statistics)))


def _trial_directory(search_directory: Place, trial: TrialHistory) -> Place:
    return search_directory / "trials" / trial.id


def _checkpoints(search_directory: Place, trial: TrialHistory) -> dict[int, Place]:
    """The checkpoints of a trial by epoch."""
    found: list[Place] = list(_trial_directory(search_directory, trial).glob("epoch-[0-9]*"))
    return {epoch_of(path): path for path in sorted(found, key=lambda path: path.name)}


def _empty_model(config: models.ModelConfig, sizes: Sizes) -> nn.Module:
    """The model before its weights: statistics are buffers of it, so these only hold the place."""
    statistics = FeatureStatistics(
        num_videos=0,
        mean_D=torch.zeros(sizes.width),
        variance_D=torch.zeros(sizes.width),
        label_counts_C=torch.zeros(sizes.num_classes, dtype=torch.int64),
    )
    # A generator of its own: loading a model must not move the random numbers of a training that is under way.
    return models.build(config, sizes, statistics, torch.Generator())


# ------------------------------------------------------------------------------------------------- into a model folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is exported: a model, and what its folder says of it."""

    model: nn.Module  # in eval mode, on the CPU
    trials: Sequence[TrialHistory]  # what it is made of: one, or the members of an ensemble
    config: Mapping[str, Any]  # its own entries of config.json: model, precision, and, unless an ensemble, trial
    scores: Mapping[str, Mapping[str, float]]  # by split
    half: bool = False  # weight matrices are stored as float16, which loses nothing of what `round_to_half` has rounded


def write(
    folder: Place,
    *,
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    trial: TrialHistory,
    metrics: Mapping[str, Mapping[str, float]],
    class_names: Sequence[str] | None,
    say: Callable[[str], None] = print,
) -> None:
    """Export a trial, then load what was written and compare its logits with the trial's own.

    Args:
        folder: appears complete, in one rename or by its last file; an older export of the same trial is replaced.
        search_directory: where the search keeps its checkpoints.
        experiment: as the search ran it.
        search: the search.
        trial: the trial to export.
        metrics: of the model on whole splits, by the split's name; empty: only those of its training are known.
        class_names: by index; None: no vocabulary.
        say: is told what happened, a line at a time.

    Raises:
        NothingToExport: the trial has no whole checkpoint.
        CheckpointError: other settings shaped it.
        ModelFolderError: `folder` is something else already, or what was written gives other logits.
        DataError: the training statistics are nowhere: neither with the search nor from the training shards.
    """
    best = best_checkpoint(search_directory, trial, say)
    epoch = epoch_of(best)
    if epoch != trial.best_epoch and trial.reports[epoch]["gap"] != trial.score:
        say(
            f"the checkpoint of the trial's best epoch {trial.best_epoch} is gone or damaged; "
            f"exporting epoch {epoch}, GAP {trial.reports[epoch]['gap']:.4f} instead of {trial.score:.4f}"
        )
    settings = experiment.trial_config(trial.values)
    publish(
        folder,
        Subject(
            model=load_checkpoint(best, experiment, trial, torch.device("cpu")).requires_grad_(False),
            trials=[trial],
            config={
                "model": asdict(settings.model),
                "precision": settings.training.precision,
                "trial": {"number": trial.number, "id": trial.id, "epoch": epoch},
            },
            scores={**metrics, "training": {"epoch": epoch, **trial.reports[epoch]}},
        ),
        search_directory=search_directory,
        experiment=experiment,
        search=search,
        class_names=class_names,
        say=say,
    )


def publish(
    folder: Place,
    subject: Subject,
    *,
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    class_names: Sequence[str] | None,
    say: Callable[[str], None] = print,
) -> None:
    """Write the folder of a model, then load what was written and compare its logits with the model's own.

    An older export of the same trial, or of an ensemble of the same search, is replaced. Arguments and errors as
    `write` has them.
    """
    folder = folder.absolute()
    trial = None if isinstance(subject.model, Ensemble) else subject.trials[0]
    replaces = check_target(folder, search, trial)
    model, schema = subject.model, experiment.data.schema
    with at(folder).publish(first=CONFIG, last=CHECKSUMS) as staging:
        config = _config(experiment, search, subject)
        _write_model(staging, model, schema, half=subject.half)
        if config["pipeline"] == "contrastive" and isinstance(model, FusedMLP):
            _write_halves(staging, model, schema)
        save_file(_statistics(search_directory, experiment, search), staging / STATISTICS)
        _write_json(staging / CONFIG, config)
        _write_json(staging / METRICS, subject.scores)
        (staging / TRIAL).write_text(_trial_yaml(experiment, subject.trials))
        if class_names is not None:
            vocabulary.write(staging / CLASSES, class_names)
        trial_yaml = (staging / TRIAL).read_text()
        card = model_card.render(config, subject.scores, trial_yaml, has_names=class_names is not None)
        (staging / CARD).write_text(card)
        sums = {path.name: _sha256(path) for path in sorted(staging.iterdir())}
        (staging / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        for path in staging.iterdir():  # safetensors keeps its files to their owner
            path.chmod((staging / CONFIG).stat().st_mode)
        say(_compare(staging, model, experiment))
    what = "an ensemble of the same search" if trial is None else "the same trial"
    again = f" (replaced the export of {what} that was there)" if replaces else ""
    epoch = "" if trial is None else f", epoch {config['trial']['epoch']},"
    say(f"exported {_told(trial)}{epoch} to {folder}{again}")


def check_target(folder: Place, search: SearchHistory, trial: TrialHistory | None) -> bool:
    """Whether an export of the same trial (None: of an ensemble) of this search is there to be replaced.

    Raises:
        ModelFolderError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False  # an empty folder is renamed over
    try:
        there = json.loads((folder / CONFIG).read_text())
        exported = f"trial {there['trial']['number']:03d}" if "trial" in there else _told(None)
        same = there["search"] == search.id and there.get("trial", {}).get("id") == (trial.id if trial else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelFolderError(f"{folder} is there already and is no exported model: give another folder") from None
    if not same:
        raise ModelFolderError(
            f"{folder} is there already: {exported} of search {there['search']}; "
            f"remove it or give another folder for {_told(trial)} of search {search.id}"
        )
    return True


def _told(trial: TrialHistory | None) -> str:
    return "an ensemble" if trial is None else f"trial {trial.number:03d}"


def _config(experiment: Experiment, search: SearchHistory, subject: Subject) -> dict[str, Any]:
    """What config.json says."""
    data = experiment.data
    return {
        "format": VERSION,
        "pipeline": experiment.pipeline,
        **subject.config,
        "weights": "float16" if subject.half else "float32",  # of the matrices in model.safetensors
        "features": [{"name": name, "width": width} for name, width in data.features.items()],  # in this order
        "level": data.level,
        "max_frames": data.max_frames,
        "num_classes": data.num_classes,
        "dtype": data.dtype,  # that features are rounded to, as in training
        "experiment": search.experiment,
        "search": search.id,
        "data_fingerprint": search.fingerprint,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _trial_yaml(experiment: Experiment, trials: Sequence[TrialHistory]) -> str:
    """Each trial as an experiment without distributions, with the seed that it had; the first is the default."""
    from tuner.config.yaml_tree import dump

    experiments = {}
    for trial in trials:
        trial_config = experiment.trial_config(trial.values)
        settings = trial_config.settings
        settings["training"]["seed"] = trial_config.seed(trial.number)
        for path in without_effect(trial_config):  # alone it would be refused for these
            block, _, name = path.rpartition(".")
            (settings[block] if block else settings).pop(name)
        blocks = {"data": asdict(experiment.data), "pipeline": experiment.pipeline, **settings}
        name = experiment.name if len(trials) == 1 else f"{experiment.name}_{trial.number:03d}"
        experiments[name] = json.loads(json.dumps(blocks))  # plain: lists for tuples, as yaml has them
    return dump({"default": next(iter(experiments)), "experiments": experiments})


def _write_model(folder: Path, model: nn.Module, schema: Schema, *, half: bool = False) -> None:
    save_file(_stored(model, half), folder / WEIGHTS)
    _write_program(folder / PROGRAM, model, schema)


def _stored(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """The tensors of model.safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {name: tensor.half() if half and _is_matrix(tensor) else tensor for name, tensor in tensors.items()}


def _is_matrix(tensor: Tensor) -> bool:
    """Whether it takes room and its values are near 1, as weights are; variances and counts need their range."""
    return tensor.is_floating_point() and tensor.ndim >= 2


def round_to_half(model: nn.Module) -> None:
    """Round the weight matrices to what float16 holds: the model is then what it will be when it is read back."""
    for tensor in model.state_dict().values():  # which shares the model's memory
        if _is_matrix(tensor):
            tensor.copy_(tensor.half())


def stored_bytes(model: nn.Module, *, half: bool) -> int:
    """The size of model.safetensors, or a little more: its header is not made for that."""
    sizes = {
        name: tensor.numel() * (2 if half and _is_matrix(tensor) else tensor.element_size())
        for name, tensor in model.state_dict().items()
    }
    return sum(sizes.values()) + sum(len(name) + 128 for name in sizes)


def _write_program(path: Path, model: nn.Module, schema: Schema) -> None:
    # Two rows to trace with: of a single one, torch.export would take the batch size for a constant.
    inputs = _random_inputs(schema, 2, torch.Generator().manual_seed(0))
    batch, frames = torch.export.Dim("batch", min=1), torch.export.Dim("frames", min=1, max=schema.max_frames)
    free = {0: batch} if schema.level == "video" else {0: batch, 1: frames}
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=(free,) * len(inputs))
    torch.export.save(program, path)


def _random_inputs(schema: Schema, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """What a model takes: features of so many videos, or their frames, of different numbers, and the mask."""
    if schema.level == "video":
        return (torch.randn(rows, schema.width, generator=generator),)
    most = min(7, schema.max_frames)
    lengths = torch.randint(1, most + 1, (rows, 1), generator=generator)
    lengths[0] = most
    mask_BT = torch.arange(most) < lengths
    frames_BTD = torch.randint(0, 256, (rows, most, schema.width), dtype=torch.uint8, generator=generator)
    return frames_BTD * mask_BT[:, :, None], mask_BT


def _write_halves(folder: Path, model: FusedMLP, schema: Schema) -> None:
    """The encoder and the linear layer on it, each for itself.

    Raises:
        ModelFolderError: together they are not the model.
    """
    encoder = model.encoder
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, folder / ENCODER)
    save_file({name: tensor.contiguous() for name, tensor in model.head.state_dict().items()}, folder / PROBE)
    _write_program(folder / ENCODER_PROGRAM, encoder, schema)
    probe = load_file(folder / PROBE)
    (features_BD,) = _random_inputs(schema, max(RANDOM_ROWS), torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embeddings_BH = torch.export.load(folder / ENCODER_PROGRAM).module()(features_BD)
        own_BC = model(features_BD)
        _difference(f"{ENCODER_PROGRAM} and {PROBE}", embeddings_BH @ probe["weight"].T + probe["bias"], own_BC)


def _statistics(search_directory: Place, experiment: Experiment, search: SearchHistory) -> dict[str, Tensor]:
    """As the search stored them; else from the training split, decoded once more where this node has not."""
    stored = search_directory / STATISTICS
    if stored.exists():
        tensors: dict[str, Tensor] = load(stored.read_bytes())
        return tensors
    train = experiment.data.open(experiment.data.train)
    if not search.fingerprint.startswith(train.fingerprint[:16]):
        raise SearchError(f"the training shards have changed since search {search.id} began: put them back to export")
    return _statistics_tensors(feature_statistics(train.statistics()))


def _statistics_tensors(statistics: FeatureStatistics) -> dict[str, Tensor]:
    tensors = {
        "num_videos": torch.tensor(statistics.num_videos),
        "mean": statistics.mean_D,
        "variance": statistics.variance_D,
        "label_counts": statistics.label_counts_C,
        "rated_counts": statistics.rated_counts_C,
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


def _compare(folder: Path, model: nn.Module, experiment: Experiment) -> str:
    """Load both forms and compare their logits with the trial's; returns the finding as a sentence.

    Raises:
        ModelFolderError: they differ by more than the tolerance.
    """
    weights = load_model(folder, torch.device("cpu")).model
    program = torch.export.load(folder / PROGRAM).module()
    generator = torch.Generator().manual_seed(0)
    batches = [_random_inputs(experiment.data.schema, rows, generator) for rows in RANDOM_ROWS]
    real = _real_rows(experiment)
    if real is not None:
        batches.append(real)
    worst = 0.0
    for inputs in batches:
        with torch.inference_mode():
            own_BC = model(*inputs)
            for name, form in ((WEIGHTS, weights), (PROGRAM, program)):
                worst = max(worst, _difference(name, form(*inputs), own_BC))
    kinds = f"{sum(RANDOM_ROWS)} random" + (f" and {len(real[0])} real" if real is not None else "")
    found = f"give the trial's logits on {kinds} videos (largest relative difference {worst:.1g})"
    return f"read back: {WEIGHTS} and {PROGRAM} {found}"


def _difference(name: str, logits_BC: Tensor, own_BC: Tensor) -> float:
    """How far the logits of what was written are from the trial's own, relative to the largest.

    Raises:
        ModelFolderError: by more than the tolerance.
    """
    difference = float((logits_BC - own_BC).abs().max() / own_BC.abs().max())
    if not difference <= TOLERANCE:
        raise ModelFolderError(
            f"{name}: other logits than the trial's model gives, by {difference:.2g} of the largest "
            f"(at most {TOLERANCE:g} is rounding): nothing was exported"
        )
    return difference


def _real_rows(experiment: Experiment) -> tuple[Tensor, ...] | None:
    """A few validation videos, as a model takes them; None where the shards are not at hand, or hold none."""
    try:
        first = data_cache.find_shards(experiment.data.validate)[0]
        shard = decode(first, experiment.data.schema, require_labels=False)
    except DataError:
        return None
    batch = next(Batches(shard, batch_size=REAL_ROWS, shuffle=False).epoch(0), None)
    return None if batch is None else batch.inputs


# ---------------------------------------------------------------------------------------------- out of a model folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An exported model, ready to score videos."""

    model: nn.Module  # in eval mode: float features [B, D], or frames and mask, -> logits_BC
    config: dict[str, Any]  # config.json
    schema: Schema  # what a shard must hold: features in the order of the model's columns, classes
    dtype: Literal["float16", "float32"]  # that features are rounded to, as in training
    precision: Precision  # of the matrix products, as in training
    class_names: list[str] | None  # by index; None: exported without a vocabulary

    def logits(self, batch: Batch) -> Tensor:
        """Its logits_BC of a batch on its device, in its precision."""
        return forward(self.model, batch, self.precision)

    def open(
        self,
        patterns: str | Sequence[str],
        progress: Callable[[BuildProgress], None] | None = None,
        require_labels: bool = True,
    ) -> Cache:
        """Return the decoded cache of shards, made first where this node has none.

        Raises:
            ConfigError: there are credentials in a pattern: the cache notes where its shards come from.
            DataError: no shard matches, or a shard is damaged or does not fit the model.
        """
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            refuse_credentials(pattern, "--data", "set them in the environment (AWS_ACCESS_KEY_ID and the like)")
        return data_cache.open_cache(
            data_cache.find_shards(patterns),
            self.schema,
            data_cache.default_directory(),
            dtype=self.dtype,
            progress=progress,
            require_labels=require_labels,
        )


def load_model(folder: Place, device: torch.device) -> Exported:
    """Load an exported model from its folder alone.

    Raises:
        ModelFolderError: the folder is incomplete, damaged, or written by a newer version of this program.
    """
    with at(folder).download((CONFIG, CHECKSUMS, WEIGHTS, CLASSES)) as local:
        return _load_model(local, device)


def _load_model(folder: Path, device: torch.device) -> Exported:
    config = _read_config(folder)
    sums = _read_checksums(folder)
    for name in (CONFIG, WEIGHTS, *({CLASSES} & sums.keys())):
        _check_file(folder, name, sums)
    try:
        features = {feature["name"]: feature["width"] for feature in config["features"]}
        schema = Schema(
            features=features,
            num_classes=config["num_classes"],
            level=config.get("level", "video"),  # older folders are of videos
            max_frames=config.get("max_frames", MAX_FRAMES),
        )
        model = _model_of(config["model"], sizes_of(schema))
        model.load_state_dict(load_file(folder / WEIGHTS))
        return Exported(
            model=model.to(device).eval(),
            config=config,
            schema=schema,
            dtype=config["dtype"],
            precision=config["precision"],
            class_names=vocabulary.read(folder / CLASSES, config["num_classes"]) if CLASSES in sums else None,
        )
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(f"{folder}: {CONFIG} and {WEIGHTS} make no model ({_first_line(error)})") from error


def _model_of(config: Mapping[str, Any], sizes: Sizes) -> nn.Module:
    """The model that config.json describes, before its weights."""
    if config["kind"] != "ensemble":
        return _empty_model(models.configured(config), sizes)
    members = [_model_of(member["model"], sizes) for member in config["members"]]
    return Ensemble(members, [member["weight"] for member in config["members"]])


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
        version = config["format"]
    except OSError as error:
        raise ModelFolderError(f"{folder}: no exported model ({CONFIG}: {error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{folder / CONFIG}: damaged, or no exported model's ({_first_line(error)})") from error
    if version not in READ:
        raise ModelFolderError(
            f"{folder}: written in format {version}, but this program reads formats {' and '.join(map(str, READ))}; "
            "use the version of it that wrote the folder"
        )
    assert isinstance(config, dict)
    return config


def _read_checksums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{folder / CHECKSUMS}: missing or not readable; export the model again") from error
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _check_file(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    path = folder / name
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; export the model again")
    if sums.get(name) != _sha256(path):
        raise ModelFolderError(f"{path}: damaged (its checksum is not the one in {CHECKSUMS}); export the model again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
