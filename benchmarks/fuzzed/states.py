"""Changed files that the program itself wrote: journals, checkpoints, teacher predictions and model folders."""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from data.schema import Schema
from fuzzed.mutation import changed, changed_text
from fuzzed.targets import Target, expect
from models import FusedMLPConfig, Sizes
from tuner.export import layout, loader
from tuner.storage import journal
from tuner.training import checkpoint, teacher, vocabulary


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, to the last bit."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


class Journals(Target):
    """A journal: it is refused, or read as the search was after one of its lines."""

    kind = "journals"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        whole = folder / "whole"
        opened = journal.Journal(whole)
        self.states: list[journal.SearchHistory] = []
        entries: list[tuple[str, dict[str, Any]]] = [
            (
                "search",
                {
                    "version": journal.VERSION,
                    "id": "s",
                    "experiment": "tiny",
                    "fingerprint": "f",
                    "planned": 4,
                    "tracking_uri": "sqlite:///mlflow.db",
                    "overrides": ["a=1"],
                    "baseline": 0.2,
                },
            ),
            ("attempt", {"cluster": "local", "job": "1", "scratch": None, "tracking_uri": "sqlite:///mlflow.db"}),
        ]
        for number in range(3):
            id = f"t{number}"
            trial = {"number": number, "id": id, "values": {"x": 0.5 * number}, "settings": {"loss.l2": number}}
            entries.append(("suggested", {**trial, "sampler_state": {"a": 1}, "study_state": {"b": [1, 2]}}))
            entries += [("report", {"id": id, "epoch": epoch, "metrics": {"gap": 0.1 * epoch}}) for epoch in (1, 2)]
            entries.append(("finished", {"id": id, "stopped_by": None, "sampler_state": {"c": 2}}))
        entries += [
            ("winner", {"id": "t1", "metrics": {"validate": {"gap": 0.25}}}),
            ("ended", {"reason": "planned"}),
            ("tracked", {}),
        ]
        for type, values in entries:
            opened.append(type, **values)
            self.states.append(journal.read(whole))
        opened.close()
        self.content = (whole / journal.FILE).read_bytes()

    def run(self, rng: random.Random) -> None:
        (self.folder / journal.FILE).write_bytes(changed(self.content, rng))
        search = journal.read(self.folder)
        expect(search in self.states, "a search that never was")
        opened = journal.Journal(self.folder)  # it cuts off what is no whole line
        opened.append("extended", trials=1)
        opened.close()
        expect(journal.read(self.folder).planned == search.planned + 1, "a line that was lost")


class Checkpoints(Target):
    """A checkpoint: it is refused, or loaded bit for bit."""

    kind = "checkpoints"
    settings = {"model": {"hidden": 8, "towers": {"mean_rgb": 4}}, "seed": 1}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        generator = torch.Generator().manual_seed(3)
        self.model = {"weight": torch.randn(5, 4, generator=generator), "seen": torch.tensor(7)}
        self.training = {"epoch": 3, "optimizer": {"step": torch.tensor(2.0)}, "rng": generator.get_state()}
        self.whole = folder / "epoch-0003"
        checkpoint.save(self.whole, model=self.model, training=self.training, settings=self.settings)
        self.files = {name: (self.whole / name).read_bytes() for name in checkpoint.FILES}

    def run(self, rng: random.Random) -> None:
        for name, content in self.files.items():
            (self.whole / name).write_bytes(content)
        name = rng.choice(checkpoint.FILES)
        (self.whole / name).write_bytes(changed(self.files[name], rng))
        model, training = checkpoint.load(self.whole, settings=self.settings)
        expect(equal(model, self.model) and equal(training, self.training), "another state")


class Teachers(Target):
    """Teacher predictions: they are refused, or read as they were written."""

    kind = "teachers"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "teacher.safetensors"
        ids = [b"v%d" % video for video in range(9)]
        classes_NK = np.tile(np.arange(4), (9, 1)).astype(np.int32)
        probabilities_NK = np.tile(np.linspace(0.9, 0.1, 4), (9, 1)).astype(np.float16)
        teacher.write(self.path, ids, classes_NK, probabilities_NK, num_classes=40, model={"number": 3})
        self.content, self.written = self.path.read_bytes(), teacher.read(self.path, 40)

    def run(self, rng: random.Random) -> None:
        self.path.write_bytes(changed(self.content, rng))
        read = teacher.read(self.path, 40)
        expect(read.model == self.written.model, f"a model {read.model!r}")
        for name in ("ids", "classes_NK", "probabilities_NK"):
            expect(np.array_equal(getattr(read, name), getattr(self.written, name)), f"other {name}")
        read.rows(np.array([b"v3", b"none"], np.bytes_))
        teacher.check(self.path, 40)


class Models(Target):
    """A model folder: it is refused, or loaded bit for bit; with sound checksums, it is refused, or it is a model."""

    kind = "models"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.whole, self.changed = folder / "whole", folder / "changed"
        self.whole.mkdir()
        features = {"mean_rgb": 6, "mean_audio": 2}
        schema = Schema(features=features, num_classes=5)
        config = FusedMLPConfig(towers={"mean_rgb": 4, "mean_audio": 2}, hidden=4)
        torch.manual_seed(1)
        model = loader.model_without_weights(config, Sizes.of(schema))
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(self.state, self.whole / layout.WEIGHTS)
        about = {
            "format": layout.FORMAT_VERSION,
            "model": asdict(config),
            "precision": "fp32",
            "features": [{"name": name, "width": width} for name, width in features.items()],
            "level": "video",
            "max_frames": 300,
            "num_classes": 5,
            "dtype": "float16",
        }
        (self.whole / layout.CONFIG).write_text(json.dumps(about, indent=2) + "\n")
        vocabulary.write(self.whole / layout.CLASSES, [f"class {number}" for number in range(5)])
        layout.write_checksums(self.whole)

    def run(self, rng: random.Random) -> None:
        shutil.rmtree(self.changed, ignore_errors=True)
        shutil.copytree(self.whole, self.changed)
        name = rng.choice([path.name for path in sorted(self.whole.iterdir())])
        content = (self.whole / name).read_bytes()
        is_text = name != layout.WEIGHTS
        (self.changed / name).write_bytes(changed_text(content.decode(), rng) if is_text else changed(content, rng))
        if sealed := name != layout.CHECKSUMS and rng.random() < 0.5:
            (self.changed / layout.CHECKSUMS).unlink()
            layout.write_checksums(self.changed)
        loaded = loader.load_model(self.changed)
        if not sealed:
            expect(equal(dict(loaded.model.state_dict()), self.state), "other weights")
        expect(loaded.precision in ("fp32", "tf32", "bf16"), f"precision {loaded.precision!r}")
        expect(loaded.dtype in ("float16", "float32"), f"dtype {loaded.dtype!r}")
        logits_BC = loaded.model(torch.zeros(2, loaded.schema.width))
        expect(logits_BC.shape == (2, loaded.schema.num_classes), "logits of another shape")


TARGETS = (Journals, Checkpoints, Teachers, Models)
