"""What MLflow records: the metrics of an epoch, and the parameters, tags and scores of trials and searches.

To record a further metric, add its key to the metrics that the training yields after an epoch, and a line to `METRICS`.
Tags and parameters are those of the functions below; `tuner.tracking.tracker` writes them.
"""

from collections.abc import Mapping
from typing import Any

from tuner.redact import redacted
from tuner.storage.journal import SearchHistory, TrialHistory

# The metrics of an epoch that journal and MLflow keep, each with the epoch as its step. Everything else in a report is
# for the driver.
METRICS = {
    "gap": "GAP at 20 on the validation videos",
    "gap_best": "the highest `gap` of the trial so far: its score",
    "hit_at_1": "share of the validation videos whose most probable class is one of their labels",
    "perr": "precision at equal recall rate",
    "map": "mean average precision over the classes",
    "loss_train": "mean loss of the epoch, with weights and penalties",
    "loss_validate": "loss on the validation videos, without weights and penalties",
    "loss_pretrain": "mean contrastive loss of the epoch, in pretraining",
    "contrastive_accuracy": "share of the videos whose positive key is the most similar one, in pretraining",
    "embedding_std": "standard deviation of the embeddings, which falls to 0 when pretraining collapses",
    "ridge_penalty": "the penalty that the ridge probe chose",
    "learning_rate": "at the end of the epoch",
    "videos_per_second": "in training, without validation",
    "seconds": "that the epoch took, validation included",
    "gpu_memory_gib": "the most memory that PyTorch has allocated on the GPU so far",
    "worker_memory_gib": "resident memory of the worker process after the epoch",
}


def recorded_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an epoch's report that are recorded."""
    return {key: value for key, value in report.items() if key in METRICS}


def search_tags(search: SearchHistory) -> dict[str, str]:
    """Tags of the parent run, beside `search_id`."""
    return {"data_fingerprint": search.fingerprint}


def search_params(search: SearchHistory, *, sampler: str, scheduler: str) -> dict[str, Any]:
    """Parameters of the parent run."""
    return {"trials": search.planned, "sampler": sampler, "scheduler": scheduler}


def trial_tags(search: SearchHistory, *, seed: int) -> dict[str, str]:
    """Tags of a trial's run when it starts, beside `trial_id` and `trial_number`; every report adds host and device."""
    return {"data_fingerprint": search.fingerprint, "seed": str(seed)}


def outcome_tags(trial: TrialHistory) -> dict[str, str]:
    """Tags of a trial's run when it ends: what stopped it, its error, the trial whose result it has."""
    tags = {}
    if trial.known:
        tags["result_of"] = trial.known["trial"]
    if trial.stopped_by:
        tags["stopped_by"] = trial.stopped_by
    if trial.error:
        tags["error"] = redacted(trial.error)
    return tags


def winner_tags(trial: TrialHistory) -> dict[str, str]:
    """Tags of the parent run that name the best trial."""
    return {"best_trial": trial.id, "best_trial_number": str(trial.number)}


def winner_metrics(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics of the parent run: those of the best trial on whole splits, such as `best/validate/gap`."""
    return {f"best/{split}/{key}": value for split, scores in metrics.items() for key, value in scores.items()}
