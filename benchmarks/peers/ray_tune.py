"""`quickstart` in plain Ray Tune: a function trainable, OptunaSearch, ASHA and the MLflow callback.

Every trial reads the shards with the `tfrecord` package and a DataLoader. As many trials run at a time as there are
CPUs. No model is kept.
"""

from argparse import Namespace
from typing import Any

import ray
from quickstart import (
    BATCH_SIZE,
    DEFAULTS,
    GRACE,
    REDUCTION,
    SEED,
    collate,
    datasets,
    in_memory,
    options,
    record,
    statistics,
    suggest,
    train,
)
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch.utils.data import ChainDataset, DataLoader


def loader(pattern: str) -> DataLoader:
    return DataLoader(ChainDataset(datasets(pattern)), batch_size=BATCH_SIZE, collate_fn=collate)


def trainable(config: dict[str, Any], known: dict[str, Any], chosen: Namespace) -> None:
    trial = tune.get_context().get_trial_id()
    every_epoch = train(config, known, loader(chosen.train), loader(chosen.validate), chosen.epochs)
    for epoch, (gap, seconds) in enumerate(every_epoch, start=1):
        record(chosen.reports, trial, epoch, gap, seconds)
        tune.report({"gap": gap})


def main() -> None:
    chosen = options(__doc__)
    ray.init(address="local")
    known = statistics(*in_memory(chosen.train))
    tuner = tune.Tuner(
        tune.with_parameters(trainable, known=known, chosen=chosen),
        tune_config=tune.TuneConfig(
            metric="gap",
            mode="max",
            num_samples=chosen.trials,
            search_alg=OptunaSearch(suggest, metric="gap", mode="max", points_to_evaluate=[DEFAULTS], seed=SEED),
            scheduler=ASHAScheduler(max_t=chosen.epochs, grace_period=GRACE, reduction_factor=REDUCTION),
        ),
        run_config=tune.RunConfig(
            name="quickstart",
            storage_path=f"{chosen.reports}.tune",
            callbacks=[MLflowLoggerCallback(tracking_uri="sqlite:///mlflow.db", experiment_name="quickstart")],
        ),
    )
    best = tuner.fit().get_best_result()
    print(f"best GAP {best.metrics_dataframe['gap'].max():.4f} with {best.config}")


if __name__ == "__main__":
    main()
