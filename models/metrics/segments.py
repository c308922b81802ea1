"""MAP@K, the metric of the 2019 challenge: segments ranked for each class, of which only the rated ones count.

Published (google/youtube-8m, segment_eval_inference.py), it cannot read the header that its own inference writes, stops
at a class without positives, and takes the last segment of a line with its newline for one that nobody rated.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from models.metrics.metrics import average_precision


def map_at_k(
    ranked: Mapping[int, Sequence[Hashable]], rated: Mapping[int, Mapping[Hashable, bool]], k: int = 100_000
) -> float:
    """Mean over the classes with a positive of the average precision of the first K segments submitted for it.

    Of these, segments that are not rated for the class are passed over, and one that is listed twice counts once. The
    sum of precisions is divided by all of the class's positives, whether they were submitted or not.

    Args:
        ranked: by class, the segments submitted, best first, as tuner/inference/segments.py reads them. A class
            without any has
            precision 0.
        rated: by class, whether each rated segment has it.
        k: how many of a class's list are looked at.

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
