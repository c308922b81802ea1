"""The README.md of an exported model: what it is, how good, made of what, and how to use it."""

from collections.abc import Mapping, Sequence
from typing import Any

# Metrics that the card shows, with their names for people.
SHOWN = {"gap": "GAP@20", "hit_at_1": "Hit@1", "perr": "PERR", "map": "mAP", "num_videos": "videos"}

# Of an encoder that was pretrained without labels and the layer on it.
HALVES = """
encoder.pt2 (weights alone: encoder.safetensors) gives embeddings of the same rows, probe.safetensors the linear layer
that makes logits of these; model.* is both. Embeddings of whole shards, with the videos' ids:

```sh
python -m tuner.embed MODEL_DIR --data 'test*.tfrecord' --output embeddings.parquet
```
"""


def render(
    config: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]], trial_yaml: str, *, has_names: bool
) -> str:
    """The card, in Markdown.

    Args:
        config: config.json of the export.
        metrics: by split; "training" is what the trial itself reported, on its sample of the validation videos.
        trial_yaml: the trial's settings.
        has_names: whether classes.csv is there.
    """
    features = config["features"]
    columns = " + ".join(f"{feature['name']} ({feature['width']})" for feature in features)
    width = sum(feature["width"] for feature in features)
    ensemble = config["model"]["kind"] == "ensemble"
    halves = HALVES if config["pipeline"] == "contrastive" and not ensemble else ""
    names = "; their names are in classes.csv" if has_names else ""
    stored = ", its matrices rounded to float16" if config["weights"] == "float16" else ""
    again = "NAME --file trial.yaml` trains one of its members" if ensemble else "--file trial.yaml` trains it"
    return f"""\
# {config["experiment"]}: {config["model"]["kind"]}

Labels videos with any of {config["num_classes"]:,} classes{names}. It takes a row of {width:,} numbers a video,
{columns} side by side in this order, and gives a logit for each class; the sigmoid of a logit is the probability.

It is {_origin(config)} of search {config["search"]}, exported {config["exported"]}{stored}.
{_members(config["model"]["members"]) if ensemble else ""}
## Metrics

{_table(metrics)}

## Data

Content of the shards, training and validation: `{config["data_fingerprint"]}`. Mean, variance and label counts of the
training videos are in statistics.safetensors (of segments also how many are rated for each class); the model has the
first two inside and wants raw features. Features are rounded to {config["dtype"]} before they enter, as in training.

## Use

```sh
python -m tuner.evaluate MODEL_DIR --data 'validate*.tfrecord'                            # shards with labels
python -m tuner.predict MODEL_DIR --data 'test*.tfrecord' --output predictions.csv        # shards with or without
```

With PyTorch alone (`torch.export.load` may run code that a file holds: take a model.pt2 from nobody you do not trust;
the commands above read model.safetensors, which can hold none):

```python
import torch

model = torch.export.load("model.pt2").module()
features = torch.zeros(8, {width})  # float32 [videos, {width}]
probabilities = model(features).sigmoid()  # [videos, {config["num_classes"]}]
```
{halves}
`sha256sum -c SHA256SUMS` checks the files. Made with {_versions(config["versions"])}.

## Settings

trial.yaml, whole: `python -m tuner.train {again} again.

```yaml
{trial_yaml.strip()}
```
"""


def _origin(config: Mapping[str, Any]) -> str:
    if config["model"]["kind"] == "ensemble":
        return f"the weighted mean of the probabilities of {len(config['model']['members'])} trials"
    return f"trial {config['trial']['number']:03d} (epoch {config['trial']['epoch']})"


def _members(members: Sequence[Mapping[str, Any]]) -> str:
    rows = ["", "| trial | epoch | model | weight | GAP@20 of its own, all of validate |", "|---|---|---|---|---|"]
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
