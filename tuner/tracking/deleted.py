"""What somebody has deleted in MLflow while a search needs it is restored: MLflow refuses every write to it.

MLflow keeps what is deleted until `mlflow gc`, and does not allow a second experiment of the same name.
"""

from collections.abc import Iterable
from typing import Any

DELETED = "deleted"  # MLflow's name for this stage of an experiment's or a run's life


def restore_experiment(client: Any, experiment: Any) -> bool:
    """Restore a deleted experiment with all of its runs; returns whether it was deleted."""
    if experiment.lifecycle_stage != DELETED:
        return False
    client.restore_experiment(experiment.experiment_id)
    return True


def restore_run(client: Any, run: Any) -> bool:
    """Restore a deleted run; returns whether it was deleted."""
    if run.info.lifecycle_stage != DELETED:
        return False
    client.restore_run(run.info.run_id)
    return True


def restore(client: Any, experiment_id: str, run_ids: Iterable[str]) -> str:
    """Restore what is deleted of an experiment and the runs to which a search writes.

    Args:
        client: of MLflow.
        experiment_id: of the experiment.
        run_ids: of the runs.

    Returns:
        What was deleted, in words; "" where nothing was.
    """
    if restore_experiment(client, client.get_experiment(experiment_id)):
        return "the experiment"
    runs = [run for run in map(client.get_run, run_ids) if restore_run(client, run)]
    return " and ".join(f"the run '{run.info.run_name}'" for run in runs)
