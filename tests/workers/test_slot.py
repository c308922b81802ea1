"""A slot without Ray: when it gives back what its workers hold, and what it says where it has lost them."""

import asyncio
import threading

import pytest
import ray.tune
from ray.train import ControllerError

from tuner.cluster.resources import Resources
from tuner.workers import slot
from tuner.workers.mailbox import Mailbox
from tuner.workers.messages import Assignment
from tuner.workers.slot import Slot
from tuner.workers.train_run import controller_lost


def test_a_slot_without_a_trial_ends_its_workers_and_starts_them_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray.tune.Trainable, "train", lambda self: self.step())
    monkeypatch.setattr(slot, "IDLE_SECONDS", 0.2)
    asyncio.run(asyncio.wait_for(_idle(), 60))


async def _idle() -> None:
    idle = Slot.__new__(Slot)  # `setup` would start Ray Train
    idle._mailbox, idle._wanted, idle._idle = Mailbox(limit=2), threading.Event(), None
    idle.reset_config({"trial_id": "one"})

    training = asyncio.create_task(idle.train())
    assert await idle.take("first", 0, 0) == Assignment(1, {"trial_id": "one"})
    for epoch in (1, 2):
        assert await idle.report(1, {"epoch": epoch, "epochs": 2})
        assert await training == {"epoch": epoch, "epochs": 2, "done": epoch == 2}
        if epoch == 1:
            training = asyncio.create_task(idle.train())
            await asyncio.sleep(0.4)  # an epoch that takes longer than the time that a slot may be idle
            assert idle._wanted.is_set()

    assert await idle.take("first", 0, 1) is None  # the workers end
    assert not idle._wanted.is_set()

    idle.reset_config({"trial_id": "two"})
    training = asyncio.create_task(idle.train())
    await asyncio.sleep(0)
    assert await idle.take("second", 0, 0) == Assignment(2, {"trial_id": "two"})
    assert idle._wanted.is_set()
    training.cancel()


@pytest.mark.parametrize(
    ("resources", "free", "said"),
    [
        (Resources(gpu=0, cpu=2), {"CPU": 2.0}, "waits for its workers to start, for 21 s so far"),
        (
            Resources(gpu=0, cpu=2),
            {"CPU": 0.5},
            "waits for 2 CPUs, for 21 s so far: 0.5 of 4 CPUs are free; other programs or trials hold the rest",
        ),
        (
            Resources(gpu=1, cpu=1, min_workers=2),
            {"CPU": 1.0},
            "waits for 2 CPUs and 2 GPUs, for 21 s so far: 1 of 4 CPUs and 0 of 2 GPUs are free; other programs or "
            "trials hold the rest",
        ),
    ],
    ids=["nothing", "CPUs", "both"],
)
def test_a_trial_without_workers_says_what_it_waits_for(
    resources: Resources, free: dict[str, float], said: str
) -> None:
    assert slot.waiting_for(resources, free, {"CPU": 4.0, "GPU": 2.0}, 21.2) == said


def test_the_loss_of_a_controller_is_explained_by_its_cause() -> None:
    """Train's own message has the cause in its second line."""
    said = controller_lost(ControllerError(RuntimeError("its node has died\na line of the traceback")))
    assert said == "Ray Train's controller was lost (its node has died)"
