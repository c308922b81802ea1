"""Everything of Ray that this project uses and that Ray does not document as stable. No other file may.

Each hook says what it is for, what breaks without it, and what the public way would be. A contract test
(tests/workers/test_ray_internals.py) checks each of them against the installed Ray and names the hook that an upgrade
has changed. This file imports nothing of this project and no torch: a slot's actor and Train's controller load it.
"""

from dataclasses import dataclass

import ray._private.state
from ray import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

# Environment variables that Ray's documentation does not list, for a private Ray. Without it each slot has one more
# actor, which watches whether a cloud is about to take the machine back; nobody takes this one back.
# The public way: none; it is read where Ray uses it.
PRIVATE_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def private_ray(directory: str) -> dict[str, object]:
    """The hidden options of `ray.init` for a private Ray: it lives in `directory` and is reached on this machine alone.

    Without them Ray's sockets and logs lie in a folder that all users and all searches of the machine share, and a
    search that is killed cannot clean up after itself; and Ray takes the address of the network, which changes with it.
    The public way: `ray start --temp-dir --node-ip-address`, which starts a Ray that outlives this process.
    """
    return {"_temp_dir": directory, "_node_ip_address": "127.0.0.1"}


class Trainer(DataParallelTrainer):
    """Train's trainer without torch, and without two helper actors for each slot.

    DataParallelTrainer is what TorchTrainer, the public class, derives from. TorchTrainer imports torch, which takes
    seconds and hundreds of megabytes in each slot's actor and controller, and neither needs it.

    The helpers are Ray Data's, whose datasets are not used here, and a cleaner of placement groups, which asks Ray's
    dashboard every second and cleans nothing where none runs; tuner/workers/placement.py is one for all slots. With the
    helpers a slot has its workers 1.5 to 3 seconds later on two cores (LOG.md, 2026-11-27), also each time that one of
    its workers is lost.
    The public way: none; a trainer takes further callbacks, but not fewer.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]


def root_cause(failure: Exception) -> BaseException:
    """What made a worker fail, of an entry of `ray.train.WorkerGroupError.worker_failures`.

    Without it the reason of a failed trial reads as the text of Train's wrapper, a traceback of many lines, and one
    that ran out of memory cannot be distinguished from one that crashed.
    The public way: `worker_failures` is public; the wrappers in it are not.
    """
    cause: BaseException = failure
    if isinstance(cause, UserExceptionWithTraceback):
        cause = cause._base_exc
    if isinstance(cause, WorkerHealthCheckFailedError):
        cause = cause.health_check_failure
    return cause


@dataclass(frozen=True, slots=True)
class Group:
    """A placement group that exists."""

    id: bytes
    creator: str  # the actor that made it, in hexadecimal digits; empty: the driver did


def placement_groups(job: str) -> list[Group]:
    """The placement groups of a job that are not removed yet.

    Without their creators it is unknown which groups belong to actors that are dead, and the search loses a slot with
    each trial that is stopped.
    The public way: `ray.util.placement_group_table` does not contain the job and the creator.
    `ray.util.state.list_placement_groups` does, but asks the dashboard, which a private Ray starts without.
    """
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    groups = map(PlacementGroupTableData.FromString, table)
    return [
        Group(group.placement_group_id, group.creator_actor_id.hex())
        for group in groups
        if group.creator_job_id.hex() == job and group.state != PlacementGroupTableData.REMOVED
    ]


def is_dead(actor: str) -> bool:
    """Whether the actor with this id, in hexadecimal digits, has existed and has ended.

    Needed beside `placement_groups`; the public way, `ray.util.state.get_actor`, asks the dashboard as well.
    """
    return ray._private.state.actors(actor).get("State") == "DEAD"


def remove_group(group: Group) -> None:
    """Remove a placement group by its id.

    The function that removes it is public; the class of the id, which it needs, is not documented.
    """
    remove_placement_group(PlacementGroup(PlacementGroupID(group.id)))
