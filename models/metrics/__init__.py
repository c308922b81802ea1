"""Metrics of rankings: one accumulator for all of them, and functions of a whole matrix of scores."""

from models.metrics.accumulator import Accumulator
from models.metrics.dense import gap, hit_at_1, mean_average_precision, perr

__all__ = ["Accumulator", "gap", "hit_at_1", "mean_average_precision", "perr"]
