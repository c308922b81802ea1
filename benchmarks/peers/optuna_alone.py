"""`quickstart` in plain Optuna: one process, the data in memory, successive halving, a run of MLflow for each trial.

No model is kept.
"""

import mlflow
import optuna
from quickstart import (
    BATCH_SIZE,
    DEFAULTS,
    GRACE,
    REDUCTION,
    SEED,
    in_memory,
    options,
    record,
    statistics,
    suggest,
    train,
)
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    chosen = options(__doc__)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("quickstart")
    videos = in_memory(chosen.train)
    known = statistics(*videos)
    training = DataLoader(TensorDataset(*videos), batch_size=BATCH_SIZE, shuffle=True)
    validation = DataLoader(TensorDataset(*in_memory(chosen.validate)), batch_size=BATCH_SIZE)

    def objective(trial: optuna.Trial) -> float:
        suggest(trial)
        best = 0.0
        with mlflow.start_run(run_name=f"trial {trial.number}"):
            mlflow.log_params(trial.params)
            every_epoch = train(trial.params, known, training, validation, chosen.epochs)
            for epoch, (gap, seconds) in enumerate(every_epoch, start=1):
                record(chosen.reports, str(trial.number), epoch, gap, seconds)
                mlflow.log_metric("gap", gap, step=epoch)
                best = max(best, gap)
                trial.report(gap, epoch)
                if trial.should_prune():
                    mlflow.set_tag("pruned", "true")
                    break
        if trial.should_prune():
            raise optuna.TrialPruned
        return best

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=SEED),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=GRACE, reduction_factor=REDUCTION),
    )
    study.enqueue_trial(DEFAULTS)
    study.optimize(objective, n_trials=chosen.trials)
    print(f"best GAP {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    main()
