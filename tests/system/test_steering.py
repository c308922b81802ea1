"""A real search that is steered from another process while it runs."""

import subprocess
import sys

import pytest

from tests.support.searches import entries_of, search_of
from tests.support.workplace import Workplace, wait_for


def steer(workplace: Workplace, *arguments: str) -> tuple[int, str]:
    """Run `python -m tuner.steer`; returns its exit code and what it printed."""
    command = [sys.executable, "-m", "tuner.steer", "tiny", *arguments]
    done = subprocess.run(
        command,
        cwd=workplace.folder,
        env=workplace.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def reports(workplace: Workplace) -> int:
    return sum(entry["type"] == "report" for entry in entries_of(workplace))


@pytest.mark.slow
def test_a_search_is_steered_while_it_runs(workplace: Workplace) -> None:
    search = workplace.start("tiny", "--set", "training.epochs=2000")
    wait_for(lambda: "epoch 1/2000" in workplace.printed(), 180)
    assert steer(workplace, "try", "model.dropout=0.2")[0] == 0
    assert steer(workplace, "drop", "0") == (0, "trial 000 dropped")
    wait_for(lambda: "trial 001  epoch 1/2000" in workplace.printed(), 180)

    assert steer(workplace, "pause")[0] == 0
    code, again = steer(workplace, "pause")
    assert code == 2 and again == "the search is paused already"
    paused_at = reports(workplace)
    assert steer(workplace, "resume")[0] == 0
    wait_for(lambda: reports(workplace) > paused_at + 1, 180)

    assert steer(workplace, "trials", "9") == (0, "9 trials are planned instead of 3")
    assert steer(workplace, "stop")[0] == 0
    assert search.wait(180) == 0, workplace.printed()

    ended = search_of(workplace)
    first, second = ended.trials.values()
    assert ended.ended == "user" and ended.tracked and ended.best_is_scored
    assert (first.stopped_by, second.stopped_by) == ("user", "user")
    assert second.values["model.dropout"] == 0.2
    assert "steered: trial 000 dropped" in workplace.printed() and "Traceback" not in workplace.printed()
    assert "has ended (user)" in steer(workplace, "pause")[1]
