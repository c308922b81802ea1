"""Trials and durations as text."""

import pytest

from tests.support.trials import trial
from tuner.console import (
    describe_end,
    describe_epoch,
    describe_seconds,
)


@pytest.mark.parametrize(
    "seconds, told",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (7384, "2 h 03 min"),
    ],
)
def test_durations_are_shown_by_their_two_largest_units(seconds: float, told: str) -> None:
    assert describe_seconds(seconds) == told


def test_the_line_of_an_epoch_shows_which_half_of_a_trial_it_belongs_to() -> None:
    rate = {"gap": 0.5, "videos_per_second": 1234.0}
    supervised = describe_epoch(trial(3), 2, 8, {**rate, "loss_train": 4.5})
    assert supervised == "trial 003  epoch 2/8  loss 4.500  GAP 0.5000  1,234 videos/s"
    pretraining = describe_epoch(trial(3), 2, 8, {**rate, "loss_pretrain": 5.5})
    assert pretraining == "trial 003  epoch 2/8  contrastive loss 5.500  GAP 0.5000  1,234 videos/s"
    fitted = describe_epoch(trial(3), 1, 1, rate)  # a model that is fitted in closed form
    assert fitted == "trial 003  epoch 1/1  GAP 0.5000  1,234 videos/s"
    taken = describe_epoch(trial(3), 6, 8, {"gap": 0.5})
    assert taken == "trial 003  epoch 6/8  GAP 0.5000  uses the encoder of another trial"


@pytest.mark.parametrize(
    ("stopped_by", "text"),
    [
        (None, "completed"),
        ("asha", "stopped by ASHA"),
        ("time_budget", "stopped by the time budget"),
        ("x", "stopped by x"),
    ],
)
def test_a_trial_completed_or_was_stopped_by_a_rule(stopped_by: str | None, text: str) -> None:
    assert describe_end(trial(0, 0.5, status="finished", stopped_by=stopped_by)) == text
