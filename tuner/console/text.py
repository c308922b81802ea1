"""Trials, settings and durations as text."""

from collections.abc import Mapping
from typing import Any

from tuner.storage.journal import TrialHistory

# What stops a trial, where the name in the journal is not the word that a reader knows.
STOPPED_BY = {
    "asha": "ASHA",
    "median": "the median rule",
    "time_budget": "the time budget",
    "goal": "the goal of the search",
    "plateau": "the plateau rule",
    "failures": "too many failures",
    "user": "the user",
}


def describe_end(trial: TrialHistory) -> str:
    """How a finished trial ended: `completed` all of its epochs, or `stopped by ASHA` or by another rule."""
    if trial.stopped_by is None:
        return "completed"
    return f"stopped by {STOPPED_BY.get(trial.stopped_by, trial.stopped_by)}"


def describe_epoch(trial: TrialHistory, epoch: int, epochs: int, metrics: Mapping[str, float]) -> str:
    """The line of an epoch of training or pretraining, or of an encoder that another trial has pretrained."""
    rate = "uses the encoder of another trial"
    if "videos_per_second" in metrics:
        rate = f"{metrics['videos_per_second']:,.0f} videos/s"
    scores = f"{describe_losses(metrics, 3)}GAP {metrics['gap']:.4f}"
    return f"trial {trial.number:03d}  epoch {epoch}/{epochs}  {scores}  {rate}"


def describe_losses(metrics: Mapping[str, Any], digits: int) -> str:
    """The training losses that an epoch has, each followed by two spaces; empty where it has none."""
    names = {"loss_train": "loss", "loss_pretrain": "contrastive loss"}
    return "".join(f"{name} {metrics[key]:.{digits}f}  " for key, name in names.items() if key in metrics)


def describe_settings(settings: Mapping[str, Any]) -> str:
    """The settings of a trial on one line."""
    return "  ".join(f"{path}={describe_value(value)}" for path, value in settings.items())


def describe_seconds(seconds: float) -> str:
    """A duration by its two largest units: `2 h 03 min`, `1 min 05 s`, `4 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def describe_value(value: Any) -> str:
    """A setting as a cell or in a line: numbers with four digits, `-` for a setting that the trial does not have."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
