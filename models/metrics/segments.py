"""MAP@K, the metric of the 2019 challenge: segments ranked for each class, of which only the rated ones count.

Source: google/youtube-8m, segment_eval_inference.py. That program cannot read the header that its own inference writes,
stops at a class without positives, and treats the last segment of a line, with its newline, as one that is not rated.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from models.metrics.ranking import average_precision


def map_at_k(
    ranked: Mapping[int, Sequence[Hashable]], rated: Mapping[int, Mapping[Hashable, bool]], k: int = 100_000
) -> float:
    """The mean over the classes with a positive of the average precision of the first K segments submitted for it.

    Segments that are not rated for the class are skipped, and a segment that is listed twice counts once. The sum of
    precisions is divided by all positives of the class, also those that were not submitted.

    Args:
        ranked: by class, the segments submitted, best first, as tuner/inference/segments.py reads them. A class without
            segments has the average precision 0.
        rated: by class, whether each rated segment has the class.
        k: the number of segments of a class that count.

    Returns:
        The mean; 0 where no class has a positive.
    """
    precisions = []
    for class_, ratings in rated.items():
        positives = sum(ratings.values())
        if positives:
            found = dict.fromkeys(ranked.get(class_, ())[:k])
            hits = [ratings[segment] for segment in found if segment in ratings]
            precisions.append(average_precision(np.array(hits, dtype=bool), positives))
    return float(np.mean(precisions)) if precisions else 0.0
