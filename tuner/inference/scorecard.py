"""Score a trained model on a whole split: more metrics than those of an epoch, and a table of the classes.

    metrics, classes = score(model, cache, precision, device)
    path.write_text(as_csv(classes, class_names))

The table has a row for each class: its index and name, the number of videos for which it is rated, the number of these
that carry it, its average precision over them (empty if no video carries it), and its mean probability.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import torch
from torch import nn

from data.batches import Batches, sample_rows
from data.cache.store import Cache
from models.metrics.per_class import CELLS, ClassScores, PerClass
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.precision import Precision

COLUMNS = ("class", "name", "rated", "positives", "average_precision", "mean_probability")
# Numbers of predictions of a video, besides the 20 of the competition, for which GAP is computed.
GAP_AT = (1, 5, 10)
# Draws the videos whose scores are kept by class, if a split is too large to keep all scores.
SAMPLE_SEED = 0


def score(
    model: nn.Module, cache: Cache, precision: Precision, device: torch.device
) -> tuple[dict[str, float], ClassScores]:
    """Score `model` on every video of a split.

    Returns:
        The metrics of `tuner.training.evaluation.evaluate` with gap_at_1, gap_at_5, gap_at_10 and map_all, and the
        scores by class. map_all averages precision over all videos; `map`, as in the paper, only over the videos that
        have the class among their 20 best. The scores by class of a split with more than CELLS scores are those of a
        seeded sample of its videos.
    """
    num_videos, num_classes = cache.num_videos, cache.schema.num_classes
    batch_size = batch_size_of(cache.schema)
    whole = Batches(cache, batch_size=batch_size, shuffle=False, device=device)
    classes = PerClass(num_classes)
    max_videos = max(CELLS // num_classes, 1)
    metrics = evaluate(model, whole, precision, gap_at=GAP_AT, classes=classes if num_videos <= max_videos else None)
    if num_videos > max_videos:
        rows = sample_rows(num_videos, max_videos / num_videos, SAMPLE_SEED)
        sample = Batches(cache, batch_size=batch_size, shuffle=False, rows=rows, device=device)
        evaluate(model, sample, precision, classes=classes)
    found = classes.compute()
    return {**metrics, "map_all": found.mean_average_precision}, found


def as_csv(classes: ClassScores, names: Sequence[str] | None) -> str:
    """Write the table as the text of a csv; without `names`, the column of names is empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for c, positives in enumerate(classes.positives_C):
        precision, probability = classes.average_precision_C[c], classes.mean_probability_C[c]
        name = names[c] if names else ""
        rows.writerow((c, name, classes.rated_C[c], positives, _number(precision), _number(probability)))
    return text.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
