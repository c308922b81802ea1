"""A search and an export of an earlier version are read and continued, and give the numbers of that version.

Their folder's README.md says how they were made: tests/fixtures/before-packages/README.md.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data.batches import Batches
from tests.support.commands import run_command
from tests.support.workplace import PROJECT, Workplace
from tuner.config.experiment import Experiment, load
from tuner.export.loader import load_model
from tuner.search.searcher import JournaledSearch
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal
from tuner.training import evaluation
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.pipelines import train

FIXTURE = PROJECT / "tests" / "fixtures" / "before-packages"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text())
ID = "20261126-223611-6343"
CPU = torch.device("cpu")


def put(folder: Path) -> Path:
    """Copy the fixture into a folder, as if the search had run there; returns the search's own folder."""
    shutil.copy(FIXTURE / "experiments.yaml", folder)
    shutil.copytree(FIXTURE / "export", folder / "export")
    shutil.copytree(FIXTURE / "shards", folder / "shards")
    search = folder / "storage" / "old" / ID
    shutil.copytree(FIXTURE / "search", search)
    for file in (search / "journal.jsonl", search / "experiment.yaml"):
        file.write_text(file.read_text().replace("FOLDER", str(folder)))
    return search


@pytest.fixture
def search(tmp_path: Path) -> Path:
    return put(tmp_path)


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Dataset]:
    """The experiment of the search, and its shards. Tests must not change them."""
    experiment = load(put(tmp_path_factory.mktemp("old")) / "experiment.yaml", None)
    return experiment, open_dataset(experiment.data)


def test_the_journal_has_its_trials_and_scores(search: Path) -> None:
    replayed = journal.read(search)
    found = [
        {
            "values": trial.values,
            "status": trial.status,
            "stopped_by": trial.stopped_by,
            "epochs": len(trial.reports),
            "score": trial.score,
            "best_epoch": trial.best_epoch,
        }
        for trial in replayed.trials.values()
    ]
    assert found == EXPECTED["trials"]
    assert (replayed.id, replayed.planned, replayed.ended) == (ID, 5, None)


def test_the_sampler_suggests_the_same_values_as_the_earlier_version(search: Path) -> None:
    """First the trials that were interrupted, then new ones: past the tenth, the suggestions depend on all scores."""
    experiment = load(search / "experiment.yaml", None)
    written = Journal(search)
    count = len(EXPECTED["trials"]) + len(EXPECTED["next_suggestions"])
    written.append("extended", trials=count - experiment.search.trials)
    searcher = JournaledSearch(experiment, written, lambda: 1, StopRule(experiment, journal.read(search)))
    expected = [trial["values"] for trial in EXPECTED["trials"]] + EXPECTED["next_suggestions"]
    for number in range(2, count):
        asked = searcher.suggest(f"tune-{number}")
        values = asked["values"]
        assert (asked["number"], asked["trial_id"]) == (number, f"{ID}-{number:04d}")
        assert values == pytest.approx(expected[number])
        gap = 0.9 - (values["model.dropout"] - 0.3) ** 2 - abs(values["optimizer.learning_rate"] - 0.01)
        written.append("report", id=asked["trial_id"], epoch=3, metrics={"gap": round(gap, 12)})
        searcher.on_trial_complete(f"tune-{number}", {"gap_best": round(gap, 12)})
        written.append("finished", id=asked["trial_id"], stopped_by=None)
    written.close()


def test_training_resumes_from_a_checkpoint_to_the_same_numbers(
    search: Path, trained_on: tuple[Experiment, Dataset], one_thread: None
) -> None:
    experiment, data = trained_on
    trial = experiment.trial_config(EXPECTED["trials"][2]["values"])
    checkpoint = search / "trials" / f"{ID}-0002" / "epoch-0002"
    seed = trial.seed(2)
    whole = [progress.metrics["gap"] for progress in train(trial, data, device=CPU, seed=seed)]
    resumed = {
        progress.epoch: progress.metrics["gap"]
        for progress in train(trial, data, device=CPU, seed=seed, resume_from=checkpoint)
    }
    # The products of matrices differ in their last digits between processors.
    assert whole == pytest.approx(EXPECTED["trial_2_gap_by_epoch"], rel=1e-5)
    # Another number of threads trained the first two epochs of the checkpoint: sums in another order.
    assert [resumed[epoch] for epoch in range(3, 31)] == pytest.approx(
        EXPECTED["trial_2_gap_by_epoch_resumed_after_2"], rel=1e-5
    )
    assert [resumed[epoch] for epoch in range(3, 31)] == pytest.approx(whole[2:], rel=1e-5)


def test_the_shards_have_the_fingerprint_of_the_search(search: Path, trained_on: tuple[Experiment, Dataset]) -> None:
    assert trained_on[1].fingerprint == journal.read(search).fingerprint == EXPECTED["fingerprint"]


def test_the_export_has_the_score_of_the_earlier_version(trained_on: tuple[Experiment, Dataset]) -> None:
    data = trained_on[1]
    loaded = load_model(FIXTURE / "export", CPU)
    batches = Batches(data.validate, batch_size=64, shuffle=False)
    metrics = evaluation.evaluate(loaded.model, batches, loaded.precision)
    assert metrics["gap"] == pytest.approx(EXPECTED["trials"][0]["score"], abs=1e-6)
    program = torch.export.load(FIXTURE / "export" / "model.pt2").module()
    (batch,) = Batches(data.validate, batch_size=data.validate.num_videos, shuffle=False).epoch(0)
    features_BD = batch.inputs[0].float()
    torch.testing.assert_close(program(features_BD), loaded.model(features_BD))


def test_the_export_predicts_the_same_as_the_earlier_version(
    trained_on: tuple[Experiment, Dataset], tmp_path: Path
) -> None:
    output = tmp_path / "predictions.csv"
    data = trained_on[0].data.validate
    run_command("tuner.predict", FIXTURE / "export", "--data", data, "--output", output, "--device", "cpu")
    with output.open() as file:
        rows = list(csv.reader(file))[1:]
    for found, (id, pairs) in zip(rows, EXPECTED["predictions"], strict=False):
        assert found[0] == id
        assert [float(word) for word in found[1].split()] == pytest.approx(
            [float(word) for word in pairs.split()], abs=1e-5
        )


@pytest.mark.slow
def test_resume_completes_the_search(tmp_path: Path) -> None:
    search = put(tmp_path)
    code, printed = Workplace(tmp_path).run("--resume")
    assert code == 0, printed
    replayed = journal.read(search)
    trials = list(replayed.trials.values())
    assert replayed.ended == "planned" and [trial.status for trial in trials] == ["finished"] * 5
    assert [trial.score for trial in trials[:2]] == [trial["score"] for trial in EXPECTED["trials"][:2]]
    assert [trial.values for trial in trials[:4]] == [trial["values"] for trial in EXPECTED["trials"]]
    assert trials[4].values == EXPECTED["next_suggestions"][0]
    gaps = [trials[2].reports[epoch]["gap"] for epoch in sorted(trials[2].reports)]
    assert gaps == pytest.approx(EXPECTED["trial_2_gap_by_epoch"][: len(gaps)], rel=1e-6)
