"""How many slots a search starts, in the simulation of benchmarks/driver.py: Tune's own loop over simulated slots."""

import json
import subprocess
import sys

from tests.support.workplace import PROJECT


def test_no_slot_is_ended_while_there_are_trials_for_it() -> None:
    # A slot starts after 140 to 260 seconds, and its first trial ends some 25 seconds later: before others start.
    seconds = ["--epoch-seconds=1", "--slot-seconds=200"]
    command = [sys.executable, "benchmarks/driver.py", "--sizes=60", "--mlflow-up-to=0", *seconds]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True)
    (report,) = json.loads(done.stdout.splitlines()[-1])["sizes"]
    assert {name: report[name] for name in ("slots", "slots_requested")} == {"slots": 6, "slots_requested": 6}
