"""Metrics of rankings, each with its definition."""

from models.metrics.metrics import gap, hit_at_1, mean_average_precision, perr

__all__ = ["gap", "hit_at_1", "mean_average_precision", "perr"]
