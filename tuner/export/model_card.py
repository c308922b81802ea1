"""README.md, the model card: what the model is, its metrics, where it comes from and how to use it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.export.formats import Contents, Format
from tuner.export.layout import CARD

# The metrics in the table of the card, by key, with the heading of their column.
SHOWN = {"gap": "GAP@20", "hit_at_1": "Hit@1", "perr": "PERR", "map": "mAP", "num_videos": "videos"}

# For a contrastive trial: an encoder that was pretrained without labels, and a linear layer.
ENCODER_AND_PROBE = """
encoder.pt2 gives the embeddings of the same rows (encoder.safetensors holds its weights alone). probe.safetensors is
the linear layer that gives logits of these embeddings; model.* holds both. To write the embeddings of whole shards,
with the ids of the videos:

```sh
python -m tuner.embed MODEL_DIR --data 'test*.tfrecord' --output embeddings.parquet
```
"""


def _write(folder: Path, contents: Contents) -> None:
    has_names = contents.class_names is not None
    (folder / CARD).write_text(
        render(contents.config, contents.scores, contents.trial_yaml, has_names=has_names), encoding="utf-8"
    )


FORMAT = Format(name=CARD, write=_write)


def render(
    config: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]], trial_yaml: str, *, has_names: bool
) -> str:
    """Write the card in Markdown.

    Args:
        config: config.json of the export.
        metrics: by split; "training" holds what the trial reported, on its sample of the validation videos.
        trial_yaml: the settings of the trial.
        has_names: whether the folder has a classes.csv.
    """
    features = config["features"]
    columns = " + ".join(f"{feature['name']} ({feature['width']})" for feature in features)
    width = sum(feature["width"] for feature in features)
    ensemble = config["model"]["kind"] == "ensemble"
    parts = ENCODER_AND_PROBE if config["pipeline"] == "contrastive" and not ensemble else ""
    names = "; their names are in classes.csv" if has_names else ""
    stored = " Its weight matrices are rounded to float16." if config["weights"] == "float16" else ""
    train = "NAME --file trial.yaml` trains one of the members" if ensemble else "--file trial.yaml` trains the model"
    return f"""\
# {config["experiment"]}: {config["model"]["kind"]}

This model labels videos with {config["num_classes"]:,} classes{names}. It takes a row of {width:,} numbers for
each video, {columns} side by side in this order, and gives a logit for each class. The sigmoid of
a logit is the probability.

It is {_origin(config)} of search {config["search"]}, exported {config["exported"]}.{stored}
{_members(config["model"]["members"]) if ensemble else ""}
## Metrics

{_table(metrics)}

## Data

Fingerprint of the training and validation shards: `{config["data_fingerprint"]}`. statistics.safetensors holds mean,
variance and label counts of the training videos (for segments also the number of rated segments of each class). The
model normalizes its input with this mean and variance, so it takes raw features. The commands below round features to
{config["dtype"]} first, as in training.

## Use

```sh
python -m tuner.evaluate MODEL_DIR --data 'validate*.tfrecord'                            # the shards need labels
python -m tuner.predict MODEL_DIR --data 'test*.tfrecord' --output predictions.csv        # the shards need no labels
```

With PyTorch alone (`torch.export.load` may run code that a file contains, so load a model.pt2 only if you trust its
author; the commands above read model.safetensors, which cannot contain code):

```python
import torch

model = torch.export.load("model.pt2").module()
features = torch.zeros(8, {width})  # float32 [videos, {width}]
probabilities = model(features).sigmoid()  # [videos, {config["num_classes"]}]
```
{parts}
`sha256sum -c SHA256SUMS` checks the files. The model was exported with {_versions(config["versions"])}.

## Settings

The content of trial.yaml. `python -m tuner.train {train} again.

```yaml
{trial_yaml.strip()}
```
"""


def _origin(config: Mapping[str, Any]) -> str:
    if config["model"]["kind"] == "ensemble":
        if len(members := config["model"]["members"]) > 1:
            return f"the weighted mean of the probabilities of {len(members)} trials"
        trial, alone = members[0], " alone, stored as an ensemble of one member,"
    else:
        trial, alone = config["trial"], ""
    return f"trial {trial['number']:03d} (epoch {trial['epoch']}){alone}"


def _members(members: Sequence[Mapping[str, Any]]) -> str:
    rows = ["", "| trial | epoch | model | weight | its own GAP@20, all of validate |", "|---|---|---|---|---|"]
    for member in members:
        cells = [f"{member['number']:03d}", str(member["epoch"]), member["model"]["kind"], f"{member['weight']:.3f}"]
        rows.append(f"| {' | '.join(cells)} | {member['gap']:.4f} |")
    return "\n".join(rows) + "\n"


def _table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    rows = [f"| measured on | {' | '.join(SHOWN.values())} |", "|---" * (1 + len(SHOWN)) + "|"]
    for split, scores in metrics.items():
        where = "validation sample during training" if split == "training" else f"all of {split}"
        cells = [_cell(name, scores[name]) if name in scores else "-" for name in SHOWN]
        rows.append(f"| {where} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "num_videos" else f"{value:.4f}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
