"""Model + batches -> metrics.

    python -m tuner.evaluate MODEL_DIR --data 'GLOB'

scores an exported model; its last line is one JSON object with the metrics.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

from data.batches import Batches
from models.metrics import Accumulator
from tuner.errors import main
from tuner.precision import Precision, autocast

BATCH_SIZE = 1024


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches, precision: Precision = "auto") -> dict[str, float]:
    """Score `model` on every video of `batches`.

    Returns:
        gap, hit_at_1, perr, map, average_num_classes, precision, recall, loss (plain: unweighted and unpenalised)
        and num_videos.
    """
    was_training = model.training
    model.eval()
    scores: Accumulator | None = None
    for batch in batches.epoch(0):
        with autocast(batch.features_BD.device, precision):
            logits_BC = model(batch.features_BD)
        scores = scores or Accumulator(logits_BC.shape[1])
        scores.update(logits_BC, batch.label_offsets, batch.label_indices)
    model.train(was_training)
    assert scores is not None, "a split without videos is refused when it is opened"
    return scores.compute()


def run(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tuner.evaluate", description="Score an exported model on shards.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a folder that `python -m tuner.best --export` wrote")
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="TFRecord shards with labels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)

    from tuner.export import load_model  # export imports evaluate

    exported = load_model(options.model, torch.device(options.device))
    cache = exported.data.open(tuple(options.data))
    batches = Batches(cache, batch_size=BATCH_SIZE, shuffle=False, device=torch.device(options.device))
    metrics = evaluate(exported.model, batches, exported.precision)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:,.6g}")
    print(json.dumps(metrics))


if __name__ == "__main__":
    sys.exit(main(run))
