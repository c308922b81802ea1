"""The table of the best trials."""

import io

from rich.console import Console as RichConsole

from tests.support.trials import trial
from tuner.console import (
    leader_table,
)


def test_the_leader_table_shows_trials_with_their_searched_settings() -> None:
    trials = [
        trial(4, 0.5, 0.7, status="finished", stopped_by="asha"),
        trial(0, 0.6, 0.65, 0.64, status="finished"),
        trial(2, 0.1, status="finished"),
    ]
    trials[1].settings = {"optimizer.learning_rate": 0.01}
    recorder = RichConsole(width=120, file=io.StringIO(), record=True)
    recorder.print(leader_table(trials[:2], ["optimizer.learning_rate", "loss.l2"]))
    rows = [line.split() for line in recorder.export_text().splitlines()]
    assert rows == [
        ["optimizer.", "loss."],
        ["trial", "GAP", "epoch", "ended", "learning_rate", "l2"],
        ["004", "0.7000", "2", "stopped", "by", "ASHA", "0.001235", "0"],
        ["000", "0.6500", "2", "completed", "0.01", "-"],
    ]
