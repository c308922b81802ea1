"""The placement groups of a search: the resources that Ray reserves for the processes of a trial.

Ray removes the group that a Train controller made when the driver has ended. A search continues after a controller
was killed or its trial was stopped, and would lose a slot each time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tuner.background import repeated
from tuner.workers import ray_internals

CHECK_SECONDS = 1.0
# The largest part of the driver's time that this may take: Ray lists every group that has ever existed.
SHARE = 0.05


@contextmanager
def freed(job: str, print_line: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, remove each placement group whose creator is dead; at the end, remove all of them.

    Train's own cleaner is another actor for each trial, which asks the dashboard every second and learns of a group
    when its workers have started: a controller that was killed before that left its group behind.

    Args:
        job: this driver's job, by Ray's id for it.
        print_line: prints a sentence where this fails; it goes on.
    """
    try:
        with repeated("freeing placement groups", partial(_remove_orphans, job), CHECK_SECONDS, print_line, SHARE):
            yield
    finally:
        remove(job)


def remove(job: str) -> None:
    """Remove all placement groups of a job."""
    for group in ray_internals.placement_groups(job):
        ray_internals.remove_group(group)


def _remove_orphans(job: str) -> None:
    for group in ray_internals.placement_groups(job):
        # Tune's own groups are made by the driver, which is no actor.
        if group.creator and ray_internals.is_dead(group.creator):
            ray_internals.remove_group(group)
