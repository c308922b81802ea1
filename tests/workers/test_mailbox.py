"""The messages of a slot, without Ray: what Tune and the workers get, whatever the other side does meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from tuner.workers.mailbox import Mailbox
from tuner.workers.messages import Assignment, epochs_of, is_last

ONE, TWO = {"trial_id": "one"}, {"trial_id": "two"}


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop; nothing in it may take a minute."""

    @wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **options), 60))

    return run


async def waits(what: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Start something, and check that it waits."""
    task = asyncio.create_task(what)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def received(mailbox: Mailbox) -> dict[str, Any]:
    """The next report, as Tune asks for it."""
    await mailbox.until_report()
    return mailbox.next_report()


def epoch(number: int, of: int = 3) -> dict[str, Any]:
    return {"epoch": number, "epochs": of}


async def mailbox_with(suggestion: dict[str, Any], limit: int = 2) -> Mailbox:
    """A mailbox whose only worker has taken its first trial."""
    mailbox = Mailbox(limit)
    mailbox.assign(suggestion)
    assert await mailbox.take("group", 0, 0) == Assignment(1, suggestion)
    return mailbox


@on_a_loop
async def test_a_worker_that_is_ready_first_waits_for_the_trial() -> None:
    mailbox = Mailbox(2)
    worker = await waits(mailbox.take("group", 0, 0))
    mailbox.assign(ONE)
    assert await worker == Assignment(1, ONE)


@on_a_loop
async def test_a_report_is_given_when_tune_has_it_and_the_last_one_ends_the_trial() -> None:
    mailbox = await mailbox_with(ONE)
    worker = await waits(mailbox.report(1, epoch(1)))
    assert await received(mailbox) == epoch(1)
    assert await worker
    last = asyncio.create_task(mailbox.report(1, epoch(3)))
    assert await received(mailbox) == epoch(3) and await last
    worker = await waits(mailbox.take("group", 0, 1))
    mailbox.assign(TWO)
    assert await worker == Assignment(2, TWO)


@on_a_loop
async def test_a_stopped_trial_ends_and_its_late_reports_reach_nobody() -> None:
    mailbox = await mailbox_with(ONE)
    stop, late = await waits(mailbox.until_unwanted(1)), await waits(mailbox.report(1, epoch(2)))
    mailbox.assign(TWO)
    await stop
    assert not await late and not await mailbox.report(1, epoch(3))
    assert await mailbox.take("group", 0, 1) == Assignment(2, TWO)
    worker = await waits(mailbox.report(2, epoch(1)))
    assert await received(mailbox) == epoch(1) and await worker


@on_a_loop
async def test_a_report_that_tune_received_counts_even_if_the_next_trial_comes_at_once() -> None:
    mailbox = await mailbox_with(ONE)
    last = await waits(mailbox.report(1, epoch(3)))
    mailbox.next_report()
    mailbox.assign(TWO)
    assert await last


@on_a_loop
async def test_every_rank_trains_the_same_trials_even_if_one_is_stopped_before_all_have_it() -> None:
    mailbox = await mailbox_with(ONE)
    assert await mailbox.take("group", 1, 0) == Assignment(1, ONE)
    mailbox.assign(TWO)
    assert await mailbox.take("group", 0, 1) == Assignment(2, TWO)
    mailbox.assign(ONE)
    assert await mailbox.take("group", 1, 1) == Assignment(2, TWO)
    last = await waits(mailbox.take("group", 1, 2))  # rank 0 has not taken it yet
    assert await mailbox.take("group", 0, 2) == await last == Assignment(3, ONE)


@on_a_loop
async def test_new_workers_get_the_trial_that_the_lost_ones_had() -> None:
    mailbox = await mailbox_with(ONE)
    mailbox.workers_lost("killed")
    assert await received(mailbox) == {"failure": "killed", "failures": 1}
    other = await waits(mailbox.take("new", 1, 0))
    assert await mailbox.take("new", 0, 0) == await other == Assignment(1, ONE)


@on_a_loop
async def test_a_trial_fails_when_its_workers_were_lost_too_often_and_the_next_one_counts_anew() -> None:
    mailbox = await mailbox_with(ONE, limit=1)
    mailbox.workers_lost("killed")
    mailbox.explain(1, "EpochTimeout: epoch 2", again=True)
    mailbox.workers_lost("killed")
    assert await received(mailbox) == {"failure": "killed", "failures": 1}
    assert await received(mailbox) == {
        "error": "EpochTimeout: epoch 2; 2 attempts (search.failures.per_trial)",
        "cause": "other",
    }
    mailbox.assign(TWO)
    assert await mailbox.take("new", 0, 0) == Assignment(2, TWO)
    mailbox.workers_lost("killed")
    assert await received(mailbox) == {"failure": "killed", "failures": 1}


@on_a_loop
async def test_losses_of_slots_count_too() -> None:
    mailbox = Mailbox(2)
    mailbox.assign({**ONE, "failures": 2})
    assert await mailbox.take("group", 0, 0)
    mailbox.workers_lost("killed")
    assert await received(mailbox) == {"error": "killed; 3 attempts (search.failures.per_trial)", "cause": "other"}


@on_a_loop
async def test_what_would_fail_again_is_not_tried_again() -> None:
    mailbox = await mailbox_with(ONE)
    mailbox.explain(1, "TrialOutOfMemory: too large", again=False)
    mailbox.workers_lost("killed")
    assert await received(mailbox) == {"error": "TrialOutOfMemory: too large", "cause": "settings"}
    await waits(mailbox.until_report())


@on_a_loop
async def test_what_a_worker_waits_for_reaches_tune_while_there_is_a_trial() -> None:
    mailbox = Mailbox(2)
    mailbox.say("too early")
    mailbox.assign(ONE)
    mailbox.say("node-1 decodes shards")
    assert await received(mailbox) == {"said": "node-1 decodes shards"}
    assert not is_last({"said": "node-1 decodes shards"})


@on_a_loop
async def test_a_worker_that_ends_between_two_trials_has_not_failed() -> None:
    mailbox = await mailbox_with(ONE)
    last = await waits(mailbox.report(1, epoch(3)))
    mailbox.next_report()
    assert await last
    mailbox.excuse()
    mailbox.assign(TWO)
    mailbox.workers_lost("ended")
    worker = await waits(mailbox.until_report())
    assert await mailbox.take("new", 0, 0) == Assignment(2, TWO)
    mailbox.workers_lost("killed")  # an excuse is good for one end
    await worker
    assert mailbox.next_report() == {"failure": "killed", "failures": 1}


@on_a_loop
async def test_a_paused_slot_has_no_workers_and_resumes_its_trial() -> None:
    mailbox = await mailbox_with(ONE)
    stop, idle = await waits(mailbox.until_unwanted(1)), await waits(mailbox.until_idle())
    mailbox.pause()
    await stop
    assert await mailbox.take("group", 0, 1) is None and await mailbox.take("group", 1, 1) is None
    await idle
    mailbox.resume()
    assert await mailbox.take("new", 0, 0) == Assignment(1, ONE)


@on_a_loop
async def test_a_pause_of_a_moment_loses_no_trial() -> None:
    mailbox = await mailbox_with(ONE)
    mailbox.pause()
    mailbox.resume()
    assert await mailbox.take("group", 0, 1) == Assignment(1, ONE)


def test_a_report_holds_its_own_epoch_or_all_so_far() -> None:
    one, two = {"epoch": 1, "gap": 0.1}, {"epoch": 2, "gap": 0.2}
    assert epochs_of(two) == [(2, two)]
    assert epochs_of({**two, "history": [one, two]}) == [(1, one), (2, two)]


@pytest.mark.parametrize(
    ("report", "last"),
    [(epoch(2), False), (epoch(3), True), ({"error": "x"}, True), ({"fatal": "x"}, True), ({"failure": "x"}, False)],
)
def test_the_last_epoch_and_every_error_end_a_trial(report: dict[str, Any], last: bool) -> None:
    assert is_last(report) is last
