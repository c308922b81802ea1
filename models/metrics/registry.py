"""The table of metrics: what `Accumulator.compute` returns, by name.

To add a metric, write a function from `Seen` to a number, and give it an entry here.
"""

from __future__ import annotations

from collections.abc import Callable

from models.metrics.calibration import pooled_calibration_error
from models.metrics.cells import precision, recall
from models.metrics.per_video import average_num_classes, hit_at_1, loss, num_videos, perr
from models.metrics.pooled import pooled_gap, pooled_mean_average_precision
from models.metrics.seen import Seen

Metric = Callable[[Seen], float]

METRICS: dict[str, Metric] = {
    "gap": pooled_gap,
    "hit_at_1": hit_at_1,
    "perr": perr,
    "map": pooled_mean_average_precision,
    "average_num_classes": average_num_classes,
    "precision": precision,
    "recall": recall,
    "num_videos": num_videos,
}
METRICS_OF_LOGITS: dict[str, Metric] = {  # without meaning for other scores
    "calibration_error": pooled_calibration_error,
    "loss": loss,
}
