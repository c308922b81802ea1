"""Whatever a feature, a class or a setting is called, MLflow gets all parameters, metrics and tags of its run."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Run
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

from tests.tracking.test_tracker import Start, finish, trial
from tuner.tracking import names

ODD = {
    "model.towers.rgb[0]": 8,
    "model.towers.rgb(0)": 9,
    "model.towers.größe/./größe": 1,
    "model.towers.a?b%c#d&e'f\"g\nh": 2,
    "../up": 3,
    "/root/": 4,
    "": 5,
    "x" * 300: 6,
    "x" * 300 + "y": 7,
    "plain": "v" * 20_000,
}


@given(key=st.text(max_size=400))
def test_mlflow_takes_every_key(key: str) -> None:
    own = names.as_key(key)
    for validate in (_validate_param_name, _validate_metric_name, _validate_tag_name):
        validate(own)
    assert len(own) <= 250 and names.as_key(own) == own


@pytest.mark.parametrize("key", ["optimizer.learning_rate", "best/validate/gap", "mlflow.parentRunId", "a b-c_d"])
def test_a_key_that_mlflow_takes_stays_as_it_is(key: str) -> None:
    assert names.as_key(key) == key


@given(values=st.dictionaries(st.text(alphabet="a[](/. ", max_size=6), st.integers(), max_size=20))
def test_no_two_keys_become_one(values: dict[str, int]) -> None:
    assert sorted(names.with_keys(values).values()) == sorted(values.values())


def test_a_run_has_all_parameters_metrics_and_tags_whatever_they_are_called(
    start: Start, runs: Callable[[], tuple[Run, dict[str, Run]]]
) -> None:
    tracker = start(params=ODD, tags=ODD)
    history = trial(0)
    many: dict[str, Any] = ODD | {f"model.towers.f{number}": number for number in range(150)}
    tracker.start_trial(history, params=many, tags=ODD)
    numbers = {key: float(number) for number, key in enumerate(ODD)}
    tracker.report(history.id, 1, {"gap": 0.5, **numbers}, {"odd[0]": "é" * 9000})
    finish(tracker, history)
    assert tracker.close() == 0 and tracker.refused == []
    parent, children = runs()
    found = children[history.id].data
    assert len(found.params) == len(many) and len(parent.data.params) == len(ODD)
    assert found.params["model.towers.rgb_0_"] == "8" and len(found.params["plain"]) == 6000
    assert sorted(found.metrics.values()) == sorted([0.5, *numbers.values()])
    assert len(found.tags["odd_0_"]) == 5000 and found.tags["model.towers.rgb_0_"] == "8"


def test_a_resumed_search_writes_a_changed_key_once(
    start: Start, runs: Callable[[], tuple[Run, dict[str, Run]]]
) -> None:
    for value in (8, 9):  # MLflow refuses to change a parameter
        tracker = start(params={"rgb[0]": value})
        assert tracker.close() == 0 and tracker.refused == []
    assert runs()[0].data.params == {"rgb_0_": "8"}
