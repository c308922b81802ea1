"""What each metric of a report means, in a few words; the functions of models/metrics/ have the definitions."""

from collections.abc import Mapping

MEANINGS = {
    "gap": "global average precision: of the pooled 20 best predictions of each video",
    "gap_at_1": "the same, with only the best prediction of each video",
    "gap_at_5": "the same, with the 5 best",
    "gap_at_10": "the same, with the 10 best",
    "hit_at_1": "share of the videos whose best prediction is right",
    "perr": "mean precision of as many predictions as a video has labels",
    "map": "mean over classes of the average precision, where a video counts for its 20 best classes only",
    "map_all": "the same, where every video counts for every class",
    "average_num_classes": "classes for each video with a probability above 1/2",
    "precision": "share of these that are labels",
    "recall": "share of the labels that are among these",
    "num_videos": "videos that were scored",
    "calibration_error": "mean difference of a probability from the share that is right (0: probabilities are true)",
    "loss": "mean cross-entropy of a video, summed over classes, without weights",
    "map_at_k": "mean over classes of the average precision of the 100,000 best segments",
    "num_classes": "classes with a rated segment that has them",
    "num_positives": "rated segments that have the class",
    "num_rated": "rated segments",
}


def explained(metrics: Mapping[str, float]) -> str:
    """A line for each metric: name, value and meaning."""
    names, values = list(metrics), [f"{value:,.6g}" for value in metrics.values()]
    name_width, value_width = max(map(len, names)), max(map(len, values))
    return "\n".join(
        f"{name:<{name_width}}  {value:<{value_width}}  {MEANINGS[name]}"
        for name, value in zip(names, values, strict=True)
    )
