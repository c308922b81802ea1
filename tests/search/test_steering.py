"""What `tuner.steer` asks of a search: carried out once and in the journal, or refused in a sentence."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from tests.search.test_searcher import CONTINUOUS, Driver, experiment_of
from tuner import steer
from tuner.errors import SearchError
from tuner.search.steering.steering import Steering
from tuner.storage import journal, requests
from tuner.storage.requests import Answer


class Ends:
    """Stands for the recorder: ends a trial that no slot has, in the journal."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.started = driver, set[str]()

    def end_where_no_slot_has(self, trial: journal.TrialHistory) -> None:
        if trial.id not in self.started:
            self.driver.journal.append("finished", id=trial.id, stopped_by="user")


class Steered:
    """A driver that is steered; `ask` sends a request and returns what became of it."""

    def __init__(self, folder: Path, text: str = CONTINUOUS, trials: int = 6) -> None:
        self.directory = folder / "search"
        self.experiment = experiment_of(folder, "random", text, trials)
        self.start()

    def start(self) -> None:
        self.printed: list[str] = []
        self.driver = Driver(self.directory, self.experiment, concurrency=2)
        self.ends, search = Ends(self.driver), self.driver.journal
        self.steering = Steering(self.experiment, search, self.driver.stop, self.ends, self.printed.append)  # type: ignore[arg-type]
        self.driver.searcher._poll = self.steering.poll
        self.steering._steers = True

    def ask(self, verb: str, *arguments: str) -> Answer:
        id = requests.send(self.directory, verb, arguments)
        self.steering._listen()
        self.steering.poll()
        self.steering._listen()
        answer = requests.take_answer(self.directory, id)
        assert answer is not None and not list((self.directory / requests.FOLDER).iterdir())
        return answer

    def again(self) -> None:
        """Kill the driver and start another one."""
        self.driver.close()
        self.start()
        self.driver.journal.append("attempt", cluster="c", job="j", scratch=None)

    @property
    def search(self) -> journal.SearchHistory:
        assert self.driver.journal.search is not None
        return self.driver.journal.search


@pytest.fixture
def steered(tmp_path: Path) -> Any:
    made = Steered(tmp_path)
    yield made
    made.driver.close()


@pytest.mark.parametrize("killed", [False, True])
def test_what_the_user_tries_comes_before_the_sampler_also_after_a_kill(steered: Steered, killed: bool) -> None:
    steered.driver.finish(*steered.driver.ask())
    answer = steered.ask("try", "optimizer.learning_rate=0.02", "model.dropout=0.2")
    said = "optimizer.learning_rate=0.02 model.dropout=0.2 is tried next, as trial 001"
    assert answer == Answer(True, said) and steered.printed == [f"steered: {said}"]
    assert "wait to be tried" in steered.ask("try", "optimizer.learning_rate=0.02", "model.dropout=0.2").said
    if killed:
        steered.again()
    _, asked = steered.driver.ask()
    assert asked["values"] == {"optimizer.learning_rate": 0.02, "model.dropout": 0.2}
    assert len(steered.search.trials) == 2 and steered.search.planned == 6


def test_a_try_is_refused_where_it_was_tried_is_unknown_or_out_of_range(steered: Steered) -> None:
    steered.driver.finish(*steered.driver.ask())
    score = next(iter(steered.search.trials.values())).score
    assert steered.ask("try", "model.dropout=0.3") == Answer(
        False, f"trial 000 has these settings: GAP {score:.4f}, finished"
    )
    for text, why in [
        ("model.dropout", "must have the form path=value"),
        ("model.droput=0.2", "unknown setting"),
        ("model.dropout=7", "model.dropout"),
        ("model.dropout=[", "yaml"),
    ]:
        answer = steered.ask("try", text)
        assert not answer.accepted and why in answer.said and "\n" not in answer.said.strip(), answer
    assert not steered.search.queued


def test_a_try_beyond_the_planned_trials_is_one_more(steered: Steered) -> None:
    steered.ask("trials", "1")
    steered.driver.finish(*steered.driver.ask())
    assert steered.ask("try", "model.dropout=0.2").accepted and steered.search.planned == 2


class Slot:
    """Stands for the actor of a slot: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.drop = SimpleNamespace(remote=lambda id: self.told.append(id))
        self.hold = SimpleNamespace(remote=lambda held: self.told.append(held))


def test_slots_are_told_once_of_a_drop_and_of_a_pause(steered: Steered) -> None:
    name, asked = steered.driver.ask()
    steered.ends.started.add(asked["trial_id"])
    slot = Slot()
    trial = SimpleNamespace(trial_id=name, config=asked, temporary_state=SimpleNamespace(ray_actor=slot))
    step = lambda: steered.steering.on_step_begin(0, [trial])  # noqa: E731
    step()
    assert slot.told == []
    assert steered.ask("drop", "000") == Answer(True, "trial 000 dropped")
    step(), step()
    assert slot.told == [asked["trial_id"]]
    assert steered.ask("pause").accepted and "paused already" in steered.ask("pause").said
    step(), step()
    assert slot.told[1:] == [True]
    assert steered.driver.ask()[1] is None
    assert steered.ask("resume").accepted and "not paused" in steered.ask("resume").said
    step(), step()
    assert slot.told[2:] == [False] and "values" in steered.driver.ask()[1]


def test_a_trial_that_waits_for_a_slot_ends_when_it_is_dropped(steered: Steered) -> None:
    _, first = steered.driver.ask()
    steered.again()
    assert steered.ask("drop", "0").accepted
    assert steered.search.trials[first["trial_id"]].stopped_by == "user"
    assert steered.driver.ask()[1]["number"] == 1
    assert "has ended" in steered.ask("drop", "0").said
    assert "no such trial" in steered.ask("drop", "7").said and "no such trial" in steered.ask("drop", "x").said


def test_a_paused_search_that_is_resumed_runs_and_a_stopped_one_ends(steered: Steered) -> None:
    steered.ask("pause")
    steered.again()
    assert not steered.search.paused and "values" in steered.driver.ask()[1]
    assert steered.ask("pause").accepted and steered.ask("stop").accepted
    assert steered.driver.ask()[1] == Searcher.FINISHED  # Tune asks nothing else while no trial runs
    assert "the search is ending (user)" in steered.ask("trials", "9").said
    steered.again()
    assert steered.driver.stop.stop_all() and steered.driver.stop.ended_by == "user"
    steered.driver.journal.append("ended", reason="user")
    steered.driver.journal.append("extended", trials=1)
    steered.again()
    assert not steered.driver.stop.stop_all()


def test_trials_are_more_or_fewer_but_not_fewer_than_have_begun(steered: Steered) -> None:
    steered.driver.ask(), steered.driver.ask()
    assert "at least 2" in steered.ask("trials", "1").said and "at least 2" in steered.ask("trials", "many").said
    assert steered.ask("trials", "9") == Answer(True, "9 trials are planned instead of 6")
    assert steered.ask("trials", "2").accepted and steered.search.planned == 2


def test_a_damaged_request_is_answered_and_removed(steered: Steered) -> None:
    folder = steered.directory / requests.FOLDER
    folder.mkdir()
    (folder / "torn.json").write_text('{"verb": "st')
    steered.steering._listen()
    answer = requests.take_answer(steered.directory, "torn")
    assert answer is not None and not answer.accepted and "damaged" in answer.said
    assert not list(folder.iterdir())


def test_a_request_from_before_this_driver_is_not_carried_out(steered: Steered) -> None:
    id = requests.send(steered.directory, "stop", ())
    with steered.steering.listening():
        steered.steering.poll()
    answer = requests.take_answer(steered.directory, id)
    assert answer is not None and not answer.accepted and "older than this driver" in answer.said
    assert not steered.search.stopped and "older than this driver" in steered.printed[0]


def test_a_request_that_was_carried_out_before_the_kill_is_answered_so_and_not_repeated(steered: Steered) -> None:
    id = requests.send(steered.directory, "trials", ("9",))
    steered.steering._listen()
    steered.steering.poll()  # it is in the journal, and the driver is killed before it has answered
    steered.again()
    with steered.steering.listening():
        pass
    assert requests.take_answer(steered.directory, id) == Answer(True, "9 trials are planned instead of 6")


def test_two_at_once_are_both_answered(steered: Steered) -> None:
    ids = [requests.send(steered.directory, "pause", ()) for _ in range(2)]
    steered.steering._listen()
    steered.steering.poll()
    steered.steering._listen()
    answers = [requests.take_answer(steered.directory, id) for id in ids]
    assert sorted(answer.accepted for answer in answers if answer) == [False, True]


def test_the_command_says_since_when_no_driver_answers(
    steered: Steered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(steer, "PATIENCE_SECONDS", 0.2)
    steered.search.id = "search"
    with pytest.raises(SearchError, match="no driver of search search answers, and the request is withdrawn"):
        steer._ask(steered.directory, "pause", [])
    assert not list((steered.directory / requests.FOLDER).iterdir())


def test_a_search_that_is_unknown_or_has_ended_cannot_be_steered(steered: Steered, tmp_path: Path) -> None:
    steered.driver.journal.append("ended", reason="planned")
    target = tmp_path / "storage" / "tiny"
    target.mkdir(parents=True)
    steered.directory.rename(target / "search")
    with pytest.raises(SearchError, match=r"has ended \(planned\)"):
        steer.run(["tiny", "pause", "--storage", str(tmp_path / "storage")])
    with pytest.raises(SearchError, match="no search of an experiment 'tine'"):
        steer.run(["tine", "pause", "--storage", str(tmp_path / "storage")])
    for wrong in (["tiny", "drop"], ["tiny", "stop", "now"], ["tiny", "try"], ["tiny", "halt"]):
        with pytest.raises(SystemExit):
            steer.run(wrong)
