"""The placement groups of a search: the places that Ray keeps for a trial's processes.

Ray removes the group that a Train controller made when the driver has ended. A search goes on after a controller was
killed or its trial was stopped, and would lose a slot each time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray._private.state
from ray import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

LOOK_SECONDS = 1.0
# Of the driver's time, at the most: Ray tells of every group that there ever was.
SHARE = 0.05


@contextmanager
def freed(job: str) -> Iterator[None]:
    """While the block runs, remove a placement group as soon as the actor that made it is dead; at its end, all.

    Train's own way is another actor for each trial, which asks the dashboard every second and learns of a group when
    its workers have started: a controller that was killed before that left its group behind.

    Args:
        job: of this driver, as Ray names it.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(job, over), name="placement", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        remove(job)


def remove(job: str) -> None:
    """Remove the placement groups of a job."""
    for group in _groups(job):
        _remove(group)


def _look(job: str, over: threading.Event) -> None:
    pause = LOOK_SECONDS
    while not over.wait(pause):
        began = time.monotonic()
        for group in _groups(job):
            if _is_dead(group.creator_actor_id):
                _remove(group)
        pause = max(LOOK_SECONDS, (time.monotonic() - began) / SHARE)


def _groups(job: str) -> list[PlacementGroupTableData]:
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    groups = map(PlacementGroupTableData.FromString, table)
    removed = PlacementGroupTableData.REMOVED
    return [group for group in groups if group.creator_job_id.hex() == job and group.state != removed]


def _is_dead(actor: bytes) -> bool:
    """Whether there was such an actor; Tune's own groups are the driver's, and no actor's."""
    return bool(actor) and ray._private.state.actors(actor.hex()).get("State") == "DEAD"


def _remove(group: PlacementGroupTableData) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
