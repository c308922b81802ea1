"""Contract: what tuner/workers/ray_internals.py uses of Ray is still there. Each failure names the hook. No Ray starts.

That the hooks also do their work is tested with a real Ray: tests/workers/test_private_ray.py (`private_ray`,
`placement_groups`, `is_dead`, `remove_group`), and the fault tests (`Trainer`, `root_cause`).
"""

import inspect
from types import SimpleNamespace

import pytest
import ray
import ray._private.state
import ray.train.v2._internal.constants as train_constants
from ray._private.accelerators import accelerator
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train import RunConfig, ScalingConfig, UserCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from tuner.workers import ray_internals
from tuner.workers.ray_internals import Group


def test_settings_are_variables_that_ray_reads() -> None:
    constants = {**vars(train_constants), **vars(accelerator)}
    known = {value for value in constants.values() if isinstance(value, str)}
    for name in ray_internals.PRIVATE_SETTINGS:
        assert name in known, f"PRIVATE_SETTINGS: Ray reads no {name}"


def test_private_ray_are_options_that_init_knows() -> None:
    known = inspect.getsource(ray.init)
    for option in ray_internals.private_ray("folder"):
        assert f'kwargs.pop("{option}"' in known, f"private_ray: ray.init takes no {option}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own settings
def test_the_trainer_starts_no_helper_actors() -> None:
    class Callback(UserCallback):
        """Of a user."""

    config = RunConfig(name="trial", storage_path="trials", callbacks=[Callback()])
    trainer = ray_internals.Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=config)
    with_helpers = super(ray_internals.Trainer, trainer)._create_default_callbacks()
    mine = trainer._create_default_callbacks()
    removed = {type(one).__name__ for one in with_helpers} - {type(one).__name__ for one in mine}
    assert removed == {"DatasetsCallback", "PlacementGroupCleanerCallback"}, "Trainer: other helpers, or none"
    assert len(with_helpers) - len(mine) == 2


def test_the_trainer_calls_the_method_that_it_replaces() -> None:
    assert "self._create_default_callbacks()" in inspect.getsource(ray_internals.Trainer.fit), "Trainer"


def test_root_cause_finds_the_exception_of_a_worker() -> None:
    cause = ValueError("the loss")
    raised = UserExceptionWithTraceback(cause, "a traceback of many lines")
    assert ray_internals.root_cause(raised) is cause, "root_cause: UserExceptionWithTraceback"
    unhealthy = WorkerHealthCheckFailedError("a worker failed", cause)
    assert ray_internals.root_cause(unhealthy) is cause, "root_cause: WorkerHealthCheckFailedError"
    assert ray_internals.root_cause(cause) is cause


def test_placement_groups_are_those_of_the_job_that_are_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(id: bytes, job: bytes, creator: bytes, state: int) -> bytes:
        fields = {"placement_group_id": id, "creator_job_id": job, "creator_actor_id": creator, "state": state}
        return PlacementGroupTableData(**fields).SerializeToString()

    created, removed = PlacementGroupTableData.CREATED, PlacementGroupTableData.REMOVED
    table = [
        group(b"one", b"\x01", b"\xab", created),
        group(b"two", b"\x01", b"", created),
        group(b"three", b"\x01", b"\xab", removed),
        group(b"four", b"\x02", b"\xab", created),
    ]
    accessor = SimpleNamespace(get_placement_group_table=lambda: table)
    state = ray._private.state.state
    assert callable(state._connect_and_get_accessor), "placement_groups: the state has no accessor"
    assert hasattr(ray._private.state.GlobalStateAccessor, "get_placement_group_table"), "placement_groups: accessor"
    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: accessor)
    assert ray_internals.placement_groups("01") == [Group(b"one", "ab"), Group(b"two", "")]


def test_is_dead_reads_the_state_of_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(iter(inspect.signature(ray._private.state.actors).parameters)) == "actor_id", "is_dead: state.actors"
    states = {"ab": {"State": "DEAD"}, "cd": {"State": "ALIVE"}, "ef": {}}
    monkeypatch.setattr(ray._private.state, "actors", states.__getitem__)
    assert [ray_internals.is_dead(actor) for actor in states] == [True, False, False]
    assert '"State"' in inspect.getsource(ray._private.state.GlobalState._gen_actor_info), "is_dead: no State"


def test_remove_group_gives_ray_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []
    monkeypatch.setattr(ray_internals, "remove_placement_group", removed.append)
    id = ray.PlacementGroupID.from_random().binary()
    ray_internals.remove_group(Group(id, ""))
    assert removed[0].id.binary() == id, "remove_group"
