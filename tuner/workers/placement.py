"""The placement groups of a search: the resources that Ray reserves for the processes of a trial.

Ray removes the group that a Train controller made when the driver has ended. A search continues after a controller
was killed or its trial was stopped, and would lose a slot each time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tuner.workers import ray_internals

CHECK_SECONDS = 1.0
# The largest part of the driver's time that this may take: Ray lists every group that has ever existed.
SHARE = 0.05


@contextmanager
def freed(job: str) -> Iterator[None]:
    """While the block runs, remove each placement group whose creator is dead; at the end, remove all of them.

    Train's own cleaner is another actor for each trial, which asks the dashboard every second and learns of a group
    when its workers have started: a controller that was killed before that left its group behind.

    Args:
        job: this driver's job, by Ray's id for it.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(job, ended), name="placement", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        remove(job)


def remove(job: str) -> None:
    """Remove all placement groups of a job."""
    for group in ray_internals.placement_groups(job):
        ray_internals.remove_group(group)


def _watch(job: str, ended: threading.Event) -> None:
    pause = CHECK_SECONDS
    while not ended.wait(pause):
        began = time.monotonic()
        for group in ray_internals.placement_groups(job):
            # Tune's own groups are made by the driver, which is no actor.
            if group.creator and ray_internals.is_dead(group.creator):
                ray_internals.remove_group(group)
        pause = max(CHECK_SECONDS, (time.monotonic() - began) / SHARE)
