"""Model + batches -> metrics.

    python -m tuner.evaluate MODEL_DIR --data 'GLOB'

scores an exported model; its last line is one JSON object with the metrics.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from tuner.errors import main

if TYPE_CHECKING:  # `--help` needs no torch
    from torch import nn

    from data.batches import Batches
    from tuner.precision import Precision
    from tuner.ranks import Ranks

BATCH_SIZE = 1024


def evaluate(
    model: nn.Module, batches: Batches, precision: Precision = "auto", ranks: Ranks | None = None
) -> dict[str, float]:
    """Score `model` on every video of `batches`, on several ranks of all of theirs.

    Returns:
        gap, hit_at_1, perr, map, average_num_classes, precision, recall, loss (plain: unweighted and unpenalised)
        and num_videos; the same on every rank.
    """
    import torch

    from models.metrics import Accumulator
    from tuner.precision import autocast
    from tuner.ranks import ALONE

    was_training = model.training
    model.eval()
    scores: Accumulator | None = None
    with torch.inference_mode():
        for batch in batches.epoch(0):
            with autocast(batch.rows.device, precision):
                logits_BC = model(*batch.inputs)
            scores = scores or Accumulator(logits_BC.shape[1])
            scores.update(
                logits_BC,
                batch.label_offsets,
                batch.label_indices,
                rated_offsets=batch.rated_offsets,
                rated_indices=batch.rated_indices,
            )
    model.train(was_training)
    ranks = ranks or ALONE
    if ranks.size > 1:
        states = ranks.gather(None if scores is None else scores.state_dict())
        first, *others = [Accumulator.from_state(state) for state in states if state is not None]
        for other in others:
            first.merge(other)
        scores = first
    assert scores is not None, "a split without videos is refused when it is opened"
    return scores.compute()


def run(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ModelFolderError: MODEL_DIR cannot be used.
        DataError: no shard matches, they hold no video, or one is damaged or does not fit the model.
    """
    parser = argparse.ArgumentParser(prog="python -m tuner.evaluate", description="Score an exported model on shards.")
    parser.add_argument("model", metavar="MODEL_DIR", help="what tuner.best --export wrote: a folder or its URL")
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="shards with labels")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    options = parser.parse_args(arguments)

    from rich.console import Console
    from rich.progress import Progress

    from data.batches import Batches
    from data.errors import NoShardsError
    from tuner.export import choose_device, load_model
    from tuner.paths import place

    device = choose_device(options.device)
    exported = load_model(place(options.model, "MODEL_DIR"), device)
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("decoding shards", total=None)
        cache = exported.open(
            options.data, lambda progress: bar.update(task, completed=progress.shards_done, total=progress.shards_total)
        )
    if cache.num_videos == 0:
        raise NoShardsError(f"{' '.join(options.data)}: the shards hold no video")
    batches = Batches(cache, batch_size=BATCH_SIZE, shuffle=False, device=device)
    metrics = evaluate(exported.model, batches, exported.precision)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:,.6g}")
    print(json.dumps(metrics))


if __name__ == "__main__":
    sys.exit(main(run))
