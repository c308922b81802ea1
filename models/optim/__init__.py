"""Optimizers by name (`registry.OPTIMIZERS`), learning rate schedules, gradient clipping and weight averaging."""

from models.optim.averaging import Average, AverageConfig
from models.optim.clipping import ClipConfig, clip
from models.optim.optimizers import OptimizerConfig, build, restore, set_learning_rate, step
from models.optim.schedule import ScheduleConfig, learning_rate_at

__all__ = [
    "Average",
    "AverageConfig",
    "ClipConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "build",
    "clip",
    "learning_rate_at",
    "restore",
    "set_learning_rate",
    "step",
]
