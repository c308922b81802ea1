"""Changed texts: yaml and csv files that a person or another program wrote."""

import csv
import gzip
import io
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuzzed.mutation import changed, changed_text
from fuzzed.targets import Target, expect
from tuner.config import experiment, yaml_tree
from tuner.inference import predictions
from tuner.training import vocabulary

ROOT = Path(__file__).parents[2]


class _Texts(yaml.SafeLoader):
    """PyYAML's safe loader that leaves every unquoted scalar as it is written."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own way)
        "<": [("tag:yaml.org,2002:merge", yaml_tree._SCALARS[-1][1])]
    }


_Texts.add_constructor("tag:yaml.org,2002:merge", _Texts.construct_yaml_str)  # `<<` as a value


class Yaml(Target):
    """experiments.yaml: every value is the one of PyYAML's safe loader; the resolved experiment is read back equal."""

    kind = "yaml"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "experiments.yaml"
        self.text = (ROOT / "experiments.yaml").read_text(encoding="utf-8")
        lines = self.text.splitlines(keepends=True)
        begins = [at for at, line in enumerate(lines) if line.startswith("  ") and line[2:3].isalpha()]
        ends = [*begins[1:], len(lines)]
        # Each experiment alone: a change in a file of all of them would seldom be in the one that is read.
        self.experiments = [
            (lines[begin].strip(" :\n"), "experiments:\n" + "".join(lines[begin:end]))
            for begin, end in zip(begins, ends, strict=True)
        ]

    def run(self, rng: random.Random) -> None:
        name, text = rng.choice(self.experiments)
        data = changed_text(text.replace("${YT8M_DIR}", "shards"), rng)
        self.path.write_bytes(data)
        tree = yaml_tree.read(self.path)
        _compare(tree.plain(), yaml.load(data.decode(), Loader=_Texts))
        loaded = experiment.load(self.path, name)
        again = experiment.Experiment.from_yaml(loaded.to_yaml(), name, self.path)
        differing = loaded.differences(again)
        expect(not differing, f"the stored copy is read back as another: {differing}")


def _compare(ours: Any, theirs: Any, path: str = "") -> None:
    """Compare a value with the one of PyYAML, whose scalars are text: a number must be what that text says."""
    if isinstance(ours, dict):
        expect(isinstance(theirs, dict) and set(ours) == set(map(str, theirs)), f"{path}: other keys")
        for key, value in theirs.items():
            _compare(ours[str(key)], value, f"{path}.{key}")
    elif isinstance(ours, list):
        expect(isinstance(theirs, list) and len(ours) == len(theirs), f"{path}: another list")
        for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            _compare(one, other, f"{path}.{at}")
    else:
        expect(_same(ours, theirs), f"{path}: {ours!r} for {theirs!r}")


def _same(ours: Any, text: Any) -> bool:
    if not isinstance(text, str) or isinstance(ours, str):
        return bool(ours == text or ours != ours)
    if ours is None:
        return text in ("", "~") or text.lower() == "null"
    if isinstance(ours, bool):
        return text.lower() == str(ours).lower()
    text = text.lower().replace("_", "")
    if isinstance(ours, int):
        return ours == int(text, 16 if "x" in text else 10)
    number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return ours == number or math.isnan(number)


class Predictions(Target):
    """A file of predictions: the pairs that are read are those that it says, and it can be scored."""

    kind = "predictions"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rows = [f"v{video:03d},{video % 7} 0.9{video} 12 0.5 39 1.5e-05" for video in range(12)]
        self.text = "\n".join([",".join(predictions.HEADER), *rows, ""])
        truth = range(0, 12, 2)
        self.truth = predictions.Labels(
            ids=np.array([f"v{video:03d}".encode() for video in truth], np.bytes_),
            label_offsets=np.arange(len(truth) + 1),
            label_indices=np.array([video % 7 for video in truth], np.int32),
        )

    def run(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            path = self.folder / "changed.csv.gz"
            path.write_bytes(changed(gzip.compress(self.text.encode(), mtime=0), rng))
            content = self.text.encode()
        else:
            path, content = self.folder / "changed.csv", changed_text(self.text, rng)
            path.write_bytes(content)
        stored = predictions.read(path)
        _, *rows = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
        expect(len(stored.rows) == len(rows), "another number of videos")
        for id, pairs in rows:
            row = stored.rows[id.encode(errors="surrogateescape")]
            begin, end = stored.offsets[row : row + 2]
            words = pairs.split()
            expect(all(word.isascii() and word.isdigit() for word in words[::2]), f"classes {words[::2]}")
            expect(stored.classes[begin:end].tolist() == [int(word) for word in words[::2]], "other classes")
            expect("_" not in pairs and pairs.isascii(), f"probabilities {words[1::2]}")
            expect(stored.probabilities[begin:end].tolist() == [float(word) for word in words[1::2]], "other numbers")
        metrics = predictions.score(stored, self.truth)
        expect(all(0 <= metrics[name] <= 1 for name in ("gap", "hit_at_1", "perr")), f"metrics {metrics}")


class Classes(Target):
    """A list of classes: names, counts and indices are those of its rows."""

    kind = "classes"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "classes.csv"
        rows = "".join(f'{index},{index * 100},"Name ""{index}"", the"\n' for index in (3, 0, 1, 4, 2))
        self.text = f"{vocabulary.INDEX},{vocabulary.COUNT},{vocabulary.NAME}\n" + rows

    def run(self, rng: random.Random) -> None:
        content = changed_text(self.text, rng)
        self.path.write_bytes(content)
        read = rng.choice((vocabulary.read, vocabulary.video_counts, vocabulary.read_indices))
        values = read(str(self.path), 5)
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        expect(all(row[vocabulary.INDEX].isascii() for row in rows), "an index that is no number")
        if read is vocabulary.read_indices:
            expect(values == [int(row[vocabulary.INDEX]) for row in rows], "other classes")
            return
        column = vocabulary.NAME if read is vocabulary.read else vocabulary.COUNT
        written = {int(row[vocabulary.INDEX]): row[column] or "" for row in rows}
        expect(list(map(str, values)) == [_plain(written[index], column) for index in range(5)], "other values")


def _plain(text: str, column: str) -> str:
    return str(int(text)) if column == vocabulary.COUNT and text.isascii() else text


TARGETS = (Yaml, Predictions, Classes)
