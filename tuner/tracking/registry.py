"""The best model of an experiment in MLflow's model registry, stored without pickle."""

from importlib import import_module
from typing import Any


def warm_up() -> None:
    """Import what `register_model` needs, which takes a second; called while the search waits for something else."""
    import_module("mlflow.pytorch")
    import_module("torch.export._trace")  # torch.export.export imports it


def register_model(
    run_id: str, tracking_uri: str, *, name: str, model: Any, example: Any, metadata: dict[str, Any]
) -> None:
    """Log a model into a run in the format of torch.export, and register it as the newest version, `name`@best.

    A second call for the same run and trial completes what the first one left undone, and creates nothing twice.

    Args:
        run_id: the run that gets the model.
        tracking_uri: of the MLflow that has the run.
        name: of the registered model.
        model: an nn.Module in eval mode, on the CPU.
        example: two real videos, for the signature and the input example: float32 [2, D], or for a model of frames
            (uint8 [2, T, D], bool [2, T]), the frames and their mask.
        metadata: stored with the model; its entry `trial` identifies the model within the run.
    """
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    run, tags = client.get_run(run_id), {"trial_id": str(metadata["trial"])}
    of_run = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    known = [logged for logged in of_run if logged.tags.items() >= tags.items()]  # its upload may be incomplete
    logged = known[0] if known else client.create_logged_model(run.info.experiment_id, "model", run_id, tags)
    if logged.status != "READY":
        outputs = run.outputs.model_outputs if run.outputs else []
        linked = any(output.model_id == logged.model_id for output in outputs)  # MLflow refuses to link a model twice
        _log_model(None if linked else run_id, logged.model_id, model, example, metadata)
    source = f"models:/{logged.model_id}"
    versions = [version for version in client.search_model_versions(f"name = '{name}'") if version.source == source]
    version = versions[0] if versions else mlflow.register_model(source, name, await_registration_for=None)
    client.set_registered_model_alias(name, "best", version.version)


def _log_model(run_id: str | None, model_id: str, model: Any, example: Any, metadata: dict[str, Any]) -> None:
    """Upload the files of a model; `run_id` is None where the run is linked to it already."""
    import mlflow
    import torch
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    frames = isinstance(example, tuple)
    shapes = (
        {"frames": (-1, -1, example[0].shape[2]), "mask": (-1, -1)} if frames else {"features": (-1, example.shape[1])}
    )
    inputs = example if frames else (example,)
    input_example: Any = list(example) if frames else example
    with torch.inference_mode():
        logits = model(*map(torch.from_numpy, inputs)).numpy()
    specs: list[Any] = [
        TensorSpec(array.dtype, shape, name) for array, (name, shape) in zip(inputs, shapes.items(), strict=True)
    ]
    signature = ModelSignature(
        inputs=Schema(specs),
        outputs=Schema([TensorSpec(logits.dtype, (-1, logits.shape[1]), "logits")]),
    )
    # Not within mlflow.start_run, which would stay open when the server goes away.
    mlflow.pytorch.log_model(
        model,
        run_id=run_id,
        model_id=model_id,
        serialization_format="pt2",
        signature=signature,
        input_example=input_example,
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        metadata=metadata,
    )
