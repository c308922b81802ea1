"""Tune starts a trial again whose slot was lost while it took the trial, on a real Ray with a slot that ends itself."""

import json
from pathlib import Path

import pytest

from tests.support.workplace import Workplace

PROGRAM = """
import json, os
from pathlib import Path
from ray import tune
from tuner.workers import connection, ray_internals

FOLDER = Path.cwd()

class Slot(tune.Trainable):
    def setup(self, config):
        self.trial = config["trial"]

    def reset_config(self, config):
        if not (FOLDER / "killed").exists():
            (FOLDER / "killed").touch()
            os._exit(1)
        self.trial = config["trial"]
        return True

    def step(self):
        return {"number": self.trial, "done": True}

with connection.connect("local"):
    ray_internals.keep_trials_of_lost_slots()
    results = tune.Tuner(
        tune.with_resources(Slot, {"memory": 2**20}),
        param_space={"trial": tune.grid_search([0, 1, 2])},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            storage_path=str(FOLDER / "ray"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
print(json.dumps([result.metrics.get("number") for result in results]))
"""

pytestmark = pytest.mark.slow


def test_a_trial_that_a_slot_was_about_to_take_is_trained_by_another_one(tmp_path: Path) -> None:
    place = Workplace(tmp_path, variables={"HOME": str(tmp_path)})  # Ray makes its token there
    done = place.python("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert (place.folder / "killed").exists()
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 1, 2]
