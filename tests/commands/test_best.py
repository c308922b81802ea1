"""`python -m tuner.best` shows the right trial of the right search, and exports its model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import refusal_of, run_command
from tests.support.finished import FinishedSearch
from tuner.errors import NothingToExport
from tuner.storage import journal
from tuner.storage.journal import Journal

ROOT = Path(__file__).parents[2]
Printed = pytest.CaptureFixture[str]


def told(capsys: Printed, *arguments: str | Path) -> str:
    run_command("tuner.best", *arguments)
    return capsys.readouterr().out


def refused(capsys: Printed, *arguments: str | Path) -> str:
    return refusal_of(capsys, "tuner.best", *arguments)


def add_search(storage: Path, experiment: str, id: str, *failures: str) -> None:
    """Add a search whose trials failed with these errors, and one trial that has not ended."""
    opened = Journal(storage / experiment / id)
    facts = {"fingerprint": "f", "planned": 3, "tracking_uri": "http://server", "overrides": [], "baseline": 0.1}
    opened.append("search", version=journal.VERSION, id=id, experiment=experiment, **facts)
    for number, failure in enumerate((*failures, None)):
        trial = f"t{number}"
        opened.append("suggested", number=number, id=trial, values={}, settings={}, sampler_state={}, study_state={})
        if failure is not None:
            opened.append("failed", id=trial, error=failure)
    opened.close()


def test_the_winner_is_printed_with_its_gain_over_trial_0(finished_search: FinishedSearch, capsys: Printed) -> None:
    printed = told(capsys, "--storage", finished_search.storage)
    score, first = finished_search.best.score, finished_search.search.trials["trial-0"].score
    assert score is not None and first is not None
    assert f"best: trial 001  GAP {score:.4f} in epoch 2 of 2" in printed
    assert f"{score - first:+.4f} over trial 0 (the defaults), {score - 0.25:+.4f} over ranking by label" in printed
    assert "2 of 4 trials finished, 1 failed, the first with: TrialDiverged: the loss is not finite" in printed
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in printed


def test_a_conditional_parameter_is_shown_as_its_resolved_number(
    finished_search: FinishedSearch, capsys: Printed
) -> None:
    printed = told(capsys, "tiny", "--storage", finished_search.storage)
    assert "model.dropout=0.2  optimizer.learning_rate=0.03  loss.l2=5" in printed
    above, header, *rows = (line.split() for line in printed.splitlines()[-4:])
    assert above == ["model.", "optimizer.", "loss."]
    assert header == ["trial", "GAP", "epoch", "ended", "dropout", "learning_rate", "l2"]
    assert [row[0] for row in rows] == ["001", "000"]
    assert [row[-3:] for row in rows] == [["0.2", "0.03", "5"], ["0.5", "0.0001", "0"]]


def test_all_searches_are_listed_with_state_trials_and_gap(own: FinishedSearch, capsys: Printed) -> None:
    add_search(own.storage, "other", "20260301-000000-0001", "out of memory", "diverged")
    (own.storage / "other" / "20260401-000000-0001").mkdir()
    (own.storage / "other" / "20260401-000000-0001" / "journal.jsonl").write_text("damaged\n")
    rows = [line.split() for line in told(capsys, "--storage", own.storage, "--list").splitlines()]
    assert rows[0] == ["experiment", "search", "state", "trials", "failed", "GAP", "best", "trial"]
    assert rows[1][:2] == ["tiny", own.directory.name]
    assert rows[1][2:] == ["not", "ended", "2", "of", "4", "1", f"{own.best.score:.4f}", "001"]
    assert rows[2] == ["other", "20260301-000000-0001", "not", "ended", "0", "of", "3", "2", "-", "-"]
    assert rows[3][:2] == ["other", "20260401-000000-0001"] and "damaged" in " ".join(rows[3])
    assert len(told(capsys, "tiny", "--storage", own.storage, "--list").splitlines()) == 2
    assert "did you mean 'tiny'" in refused(capsys, "tinny", "--storage", own.storage, "--list")


def test_the_table_has_the_requested_length(finished_search: FinishedSearch, capsys: Printed) -> None:
    assert "\n  000  " not in told(capsys, "--storage", finished_search.storage, "--top", "1")


def test_scores_on_whole_splits_come_from_the_journal(own: FinishedSearch, tmp_path: Path, capsys: Printed) -> None:
    opened = Journal(own.directory)
    scores = {"gap": 0.8125, "hit_at_1": 0.75, "perr": 0.5, "map": 0.25, "num_videos": 50.0}
    opened.append("ended", reason="planned")
    opened.append("winner", id="trial-1", metrics={"validate": scores, "test": scores | {"gap": 0.0625}})
    opened.close()
    printed = told(capsys, "--storage", own.storage, "--export", tmp_path / "out")
    assert "(ended: planned)" in printed
    assert "on all of validate: GAP 0.8125  Hit@1 0.7500  PERR 0.5000  mAP 0.2500" in printed
    assert "on all of test: GAP 0.0625" in printed
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored.keys() == {"validate", "test", "training"}


def test_scores_of_an_earlier_winner_are_not_shown_for_the_present_one(own: FinishedSearch, capsys: Printed) -> None:
    opened = Journal(own.directory)
    opened.append("winner", id="trial-0", metrics={"validate": {"gap": 0.8}})
    opened.close()
    assert "on all of" not in told(capsys, "--storage", own.storage)


def test_a_search_that_still_runs_is_read(own: FinishedSearch, capsys: Printed) -> None:
    driver = Journal(own.directory)
    assert "(not ended: it runs or was interrupted)" in told(capsys, "--storage", own.storage)
    driver.close()


def test_the_storage_is_found_beside_the_yaml(
    own: FinishedSearch, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "best: trial 001" in told(capsys, "--file", own.folder / "experiments.yaml")
    monkeypatch.chdir(own.folder)
    assert "best: trial 001" in told(capsys)
    monkeypatch.setenv("TUNER_STORAGE", str(tmp_path / "elsewhere"))
    assert "elsewhere: no search there yet; `python tune.py` runs one" in refused(capsys)


def test_the_hint_names_a_tracking_server_that_was_given(finished_search: FinishedSearch, capsys: Printed) -> None:
    assert "open http://x:5000" in told(capsys, "--storage", finished_search.storage, "--tracking-uri", "http://x:5000")


def test_the_error_of_an_unknown_name_has_the_nearest_name(own: FinishedSearch, capsys: Printed) -> None:
    add_search(own.storage, "fused_mlp", "20250101-000000-0001")
    experiments = refused(capsys, "tinny", "--storage", own.storage)
    assert "no search of an experiment 'tinny'; did you mean 'tiny'? (there are: fused_mlp, tiny)" in experiments
    searches = refused(capsys, "tiny", "--search", "20260102-030405-0002", "--storage", own.storage)
    assert "no search '20260102-030405-0002' of tiny; did you mean '20260102-030405-0001'? (there is: 2026" in searches
    assert "did you mean" not in refused(capsys, "--search", "x", "--storage", own.storage)


def test_a_search_without_finished_trials_reports_how_many_failed_and_why(tmp_path: Path, capsys: Printed) -> None:
    add_search(tmp_path, "tiny", "20250101-000000-0001", "ShardError: a.tfrecord is damaged", "TrialDiverged: nan")
    sentence = refused(capsys, "--storage", tmp_path)
    assert "no trial has finished; 1 have not ended; 2 failed, the first with: ShardError: a.tfrecord" in sentence
    with pytest.raises(NothingToExport):
        journal.read(tmp_path / "tiny" / "20250101-000000-0001").best_trial()


def test_export_without_a_path_uses_a_folder_named_after_the_search(
    finished_search: FinishedSearch, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = told(capsys, "tiny", "--storage", finished_search.storage, "--export")
    folder = "exports/tiny-20260102-030405-0001"
    assert (tmp_path / folder / "classes.csv").exists()
    assert "read back: model.safetensors and model.pt2 give the trial's logits on 34 random and 64 real" in printed
    (next_command,) = re.findall(r"python -m (tuner\.predict .*) --output", printed)
    assert next_command == f"tuner.predict {folder} --data 'GLOB'"


def test_the_commands_run_one_after_the_other_as_typed(finished_search: FinishedSearch, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(module: str, *arguments: str | Path) -> str:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run("tuner.best", "--storage", finished_search.storage, "--export", "model")
    metrics = json.loads(run("tuner.evaluate", "model", "--data", finished_search.validate).splitlines()[-1])
    assert metrics["gap"] == finished_search.best.score
    printed = run("tuner.predict", "model", "--data", finished_search.validate, "--output", "out.csv")
    assert re.fullmatch(r"out\.csv: 150 videos in .* s \(.* videos/s\)\n", printed)


@pytest.mark.parametrize("module", ["tuner.best", "tuner.evaluate", "tuner.predict"])
def test_help_imports_no_framework(module: str) -> None:
    program = f"""
import runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print({{"torch", "ray", "mlflow", "optuna", "pydantic"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
