"""Scores a model on batches: the metrics of one pass over a split, on one rank or on several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from data.batches import Batches
from data.schema import Schema
from models.metrics import Accumulator
from models.metrics.per_class import PerClass
from models.metrics.top_classes import NotANumber
from tuner.errors import TrialDiverged
from tuner.training.precision import Precision, forward
from tuner.training.ranks import ALONE, Ranks

BATCH_SIZE = 1024  # videos that are scored at once, at the most
VALUES_AT_ONCE = 1 << 26  # values of features that are scored at once, at the most: 256 MB in float32


def batch_size_of(schema: Schema) -> int:
    """The number of examples to score at once; the scores do not depend on it."""
    return max(1, min(BATCH_SIZE, VALUES_AT_ONCE // schema.values_of_largest))


def evaluate(
    model: nn.Module,
    batches: Batches,
    precision: Precision = "auto",
    ranks: Ranks = ALONE,
    *,
    gap_at: Sequence[int] = (),
    classes: PerClass | None = None,
) -> dict[str, float]:
    """Score `model` on every video of `batches`; with several ranks, on the videos of all ranks.

    Args:
        model: it is not changed, and keeps its mode (train or eval).
        batches: one pass over them is scored.
        precision: of the matrix products.
        ranks: the workers, each of which has a part of the videos.
        gap_at: further numbers K of predictions per video to compute a GAP of.
        classes: gets all scores of this rank.

    Returns:
        gap, hit_at_1, perr, map, average_num_classes, precision, recall, calibration_error, loss (without weights and
        penalties), num_videos, and gap_at_K for each K; the same on every rank.

    Raises:
        TrialDiverged: the model of a rank gives NaN: its weights are not finite, or so large that they overflow.
    """
    scores = ranks.together(lambda: _scores(model, batches, precision, classes))
    if ranks.size > 1:
        states = ranks.gather(None if scores is None else scores.state_dict())
        first, *others = [Accumulator.from_state(state) for state in states if state is not None]
        for other in others:
            first.merge(other)
        scores = first
    assert scores is not None, "open_dataset refuses a split without videos"
    with _diverged_at_nan():
        return scores.compute(gap_at)


def _scores(model: nn.Module, batches: Batches, precision: Precision, classes: PerClass | None) -> Accumulator | None:
    """The scores of this rank's videos; None without videos."""
    was_training = model.training
    model.eval()
    scores: Accumulator | None = None
    with torch.inference_mode(), _diverged_at_nan():
        for batch in batches.epoch(0):
            logits_BC = forward(model, batch, precision)
            scores = scores or Accumulator(logits_BC.shape[1])
            keepers: list[Accumulator | PerClass] = [scores] if classes is None else [scores, classes]
            for keeper in keepers:
                keeper.update(
                    logits_BC,
                    batch.label_offsets,
                    batch.label_indices,
                    rated_offsets=batch.rated_offsets,
                    rated_indices=batch.rated_indices,
                )
    model.train(was_training)
    return scores


@contextmanager
def _diverged_at_nan() -> Iterator[None]:
    """A step that diverges shows in its loss; the last one of an epoch shows here."""
    try:
        yield
    except NotANumber as error:
        raise TrialDiverged(f"the model has diverged: {error}") from error
