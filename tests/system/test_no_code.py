"""No file from elsewhere runs code: pickles are planted in each file of exports, checkpoints, caches, and in yaml."""

import ast
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.cache.recipe import find_shards
from data.cache.store import Cache, open_cache
from data.errors import DataError
from tests.support.commands import exit_code_of
from tests.support.finished import FinishedSearch
from tests.support.searches import folder_of, search_of
from tests.support.workplace import PROJECT, Workplace
from tuner.cli import main
from tuner.config.experiment import load
from tuner.errors import CheckpointError, ModelFolderError, SearchError
from tuner.export.layout import sha256
from tuner.export.loader import load_model
from tuner.storage import journal
from tuner.training import checkpoint
from tuner.training.contrastive.encoder_store import EncoderStore, key


class Planted:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return the folder that a planted pickle makes when it is loaded."""
    pickle.loads(pickle.dumps(Planted(tmp_path / "proof")))
    assert (tmp_path / "proof").is_dir(), "unpickling a planted object makes no folder"
    return tmp_path / "trace"


def plant(path: Path, trace: Path) -> None:
    """Write a pickle into a file, in the form that the reader of such files would unpickle."""
    match path.suffix:
        case ".npy":
            np.save(path, np.array([Planted(trace)], dtype=object), allow_pickle=True)
        case ".npz":
            names = np.load(path).files
            np.savez(path, **{name: np.array([Planted(trace)], dtype=object) for name in names})  # type: ignore[arg-type]
        case ".pt" | ".pt2":
            torch.save(Planted(trace), path)
        case _:
            path.write_bytes(pickle.dumps(Planted(trace)))


def is_one_sentence(capsys: pytest.CaptureFixture[str]) -> bool:
    said = capsys.readouterr().err
    return "Traceback" not in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "name, code",
    [
        ("config.json", 2),
        ("model.safetensors", 2),
        ("classes.csv", 2),
        ("SHA256SUMS", 2),
        ("model.pt2", 0),  # scoring videos does not read the files below
        ("statistics.safetensors", 0),
        ("trial.yaml", 0),
        ("metrics.json", 0),
        ("README.md", 0),
    ],
)
def test_a_pickle_in_an_export_is_not_loaded(
    name: str,
    code: int,
    exported: Path,
    finished_search: FinishedSearch,
    trace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "classes.csv", "SHA256SUMS", "model.pt2", "statistics.safetensors"),
        *("trial.yaml", "metrics.json", "README.md"),
    }
    plant(folder / name, trace)
    if name != "SHA256SUMS":  # an attacker would make the checksums fit
        sums = {path.name: sha256(path) for path in folder.iterdir() if path.name != "SHA256SUMS"}
        (folder / "SHA256SUMS").write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))
    arguments = (folder, "--data", finished_search.validate, "--device", "cpu")
    assert exit_code_of("tuner.evaluate", *arguments) == code
    assert code == 0 or is_one_sentence(capsys)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["os.system", "torch.nn.Linear", "__import__"])
def test_a_model_folder_cannot_name_code_to_run(kind: str, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["kind"] = kind
    (folder / "config.json").write_text(json.dumps(config))
    sums = {path.name: sha256(path) for path in folder.iterdir()}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))
    with pytest.raises(ModelFolderError, match="cannot build the model"):
        load_model(folder, torch.device("cpu"))


def planted_checkpoint(folder: Path, name: str, trace: Path, settings: dict[str, Any]) -> None:
    checkpoint.save(folder, model={"weight": torch.zeros(2)}, training={"made_by": "t"}, settings=settings)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "training.pt", "checkpoint.json"}
    plant(folder / name, trace)
    if name != "checkpoint.json":
        manifest = json.loads((folder / "checkpoint.json").read_text())
        manifest["files"][name] = checkpoint._describe(folder / name)
        del manifest["crc32c"]
        (folder / "checkpoint.json").write_text(checkpoint.sealed(manifest))


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
def test_a_pickle_in_a_checkpoint_or_cached_encoder_is_not_loaded(
    name: str, trace: Path, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("CRITICAL", logger="tuner.training.contrastive.encoder_store")
    settings = {"seed": 1}
    planted_checkpoint(tmp_path / "epoch-0001", name, trace, settings)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path / "epoch-0001", settings=settings)
    planted_checkpoint(tmp_path / key(settings), name, trace, settings)
    assert EncoderStore(directory=tmp_path, trial_id="t").find(settings) is None  # it is pretrained again
    assert not trace.exists()


def test_a_pickle_in_a_cache_is_not_loaded(finished_search: FinishedSearch, trace: Path, tmp_path: Path) -> None:
    """A cache with a planted pickle in any of its files is built again."""
    validate, directory = finished_search.experiment.data, tmp_path / "cache"

    def open_it() -> Cache:
        return open_cache(find_shards(validate.validate), validate.schema, directory)

    expected = np.array(open_it().features_ND)
    open_it().statistics()
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".npy", ".npz", ".json"}
    for file in files:
        plant(directory / file, trace)
        cache = open_it()
        np.testing.assert_array_equal(np.array(cache.features_ND), expected)
        assert cache.statistics().num_videos == len(expected)
        assert not trace.exists(), file
        shutil.rmtree(directory)
        open_it().statistics()


def test_a_pickle_in_a_cache_with_a_fitting_manifest_is_not_loaded(
    finished_search: FinishedSearch, trace: Path, tmp_path: Path
) -> None:
    cache = finished_search.data.validate
    for name in [path.name for path in cache.directory.iterdir() if path.suffix in (".npy", ".json")]:
        folder = tmp_path / name
        shutil.copytree(cache.directory, folder)
        plant(folder / name, trace)
        if name != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["columns"][name] = (folder / name).stat().st_size
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError) as told:
            Cache.load(folder)
        assert "\n" not in str(told.value)
    assert not trace.exists()


def test_a_pickle_in_a_journal_is_not_loaded(trace: Path, tmp_path: Path) -> None:
    plant(tmp_path / "journal.jsonl", trace)
    with pytest.raises(SearchError):
        journal.read(tmp_path)
    assert not trace.exists()


@pytest.mark.slow
def test_a_pickle_in_the_files_of_ray_is_not_loaded(workplace: Workplace, trace: Path) -> None:
    """Ray pickles its own state into the storage; a driver begins without it, and reads the journal instead."""
    short = ("--set", "training.epochs=1", "--trials", "1")
    code, printed = workplace.run(*short)
    assert code == 0, printed
    for attempt in ("attempt-1", "attempt-2", "attempt-3"):
        folder = folder_of(workplace) / "ray" / attempt
        folder.mkdir(parents=True)
        for name in ("tuner.pkl", "trainable.pkl", "searcher-state-1.pkl", "search_gen_state-1.json"):
            plant(folder / name, trace)
        state = json.dumps({"_type": "CLOUDPICKLE_FALLBACK", "value": pickle.dumps(Planted(trace)).hex()})
        (folder / "experiment_state-2026-01-01_00-00-00.json").write_text(state)
    code, printed = workplace.run("--extend", "1", output="extended.txt")
    assert code == 0, printed
    assert len(search_of(workplace).finished) == 2 and not trace.exists()


@pytest.mark.parametrize(
    "planted",
    [
        "!!python/object/apply:os.mkdir ['{trace}']",
        "!!python/object/new:os.mkdir ['{trace}']",
        "!!python/name:os.sep",
    ],
)
def test_a_yaml_tag_runs_no_code(planted: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "experiments.yaml"
    file.write_text(f"experiments:\n  tiny:\n    data: {planted.format(trace=trace)}\n")

    def command() -> None:
        load(file, "tiny")

    assert main(command) == 2
    assert all(line.startswith(str(file)) for line in capsys.readouterr().err.splitlines())  # a line for each mistake
    assert not trace.exists()


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_module_unpickles_evaluates_or_imports_by_name() -> None:
    files = [path for name in ("data", "models", "tuner") for path in (PROJECT / name).rglob("*.py")]
    for path in [PROJECT / "tune.py", *files]:
        name = path.relative_to(PROJECT).as_posix()
        for function, call in calls(ast.parse(path.read_text())):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if function == "torch.load":
                assert options.get("weights_only") == "True", name
            if function == "np.load":
                assert "allow_pickle" not in options, name  # numpy's default is not to
            if function == "torch.export.load":
                assert name == "tuner/export/torch_export.py", name  # there, to read back what it has just written
            if function.startswith("pickle.load"):
                # On the pipes between a process and its own children; from the driver, beside what Ray itself pickles.
                assert name in ("data/cache/workers.py", "tuner/workers/worker.py"), name
            assert function not in ("eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load"), name
            if function.endswith("import_module"):
                assert all(isinstance(argument, ast.Constant) for argument in call.args), name
