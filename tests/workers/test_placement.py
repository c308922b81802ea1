"""A slot that a dead actor kept is given back while the search goes on."""

import json

import pytest

from tests.support.workplace import Workplace

PROGRAM = """
import json, time
import ray
from ray.util import placement_group, placement_group_table
from tuner.workers import connection

PLACE = [{"CPU": 0.1}]

@ray.remote(num_cpus=0)
class Controller:
    def __init__(self):
        self.group = placement_group(PLACE)

    def ready(self):
        self.group.wait(60)
        return self.group.id.hex()

def states():
    table = placement_group_table()
    return [table[id]["state"] for id in (*made, drivers.id.hex())]

with connection.connect("local"):
    controllers = [Controller.remote() for _ in range(2)]
    made = ray.get([controller.ready.remote() for controller in controllers])
    drivers = placement_group(PLACE)
    drivers.wait(60)
    seen = [states()]
    ray.kill(controllers[0])
    until = time.monotonic() + 60
    while states() == seen[0] and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(3)  # several looks
    seen.append(states())
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_the_group_of_a_dead_actor_is_removed_and_no_other(workplace: Workplace) -> None:
    done = workplace.python("-c", PROGRAM, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == ["CREATED", "CREATED", "CREATED"]
    assert after == ["REMOVED", "CREATED", "CREATED"]
