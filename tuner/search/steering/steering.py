"""Carries out the requests of `python -m tuner.steer`, on the driver of the search.

    thread        reads new requests, writes the answers      Tune's thread     decides, writes the journal, acts

What a request does is one entry of the journal, `steered`, and follows from that entry alone. A driver that was killed
after it wrote the entry has done what was asked; one that was killed before has not, and the next one says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from ray.tune import Callback

from tuner.background import repeated
from tuner.config.experiment import Experiment
from tuner.config.yaml_tree import parse
from tuner.errors import ConfigError, TunerError
from tuner.search.recorder import Recorder
from tuner.search.sampling.suggestions import configuration
from tuner.search.stopper import StopRule
from tuner.storage import requests
from tuner.storage.journal import Journal, SearchHistory, TrialHistory, Unsaved
from tuner.storage.requests import Answer, Request

SECONDS = 1.0  # between two looks for requests


class Steering(Unsaved, Callback):
    """Receives requests; Tune calls it at each step of its loop, at least ten times a second while a trial runs."""

    def __init__(
        self,
        experiment: Experiment,
        journal: Journal,
        stop: StopRule,
        recorder: Recorder,
        print_line: Callable[[str], None],
    ) -> None:
        """Answer nothing yet.

        Args:
            experiment: what is searched.
            journal: of the search, open.
            stop: ends the search.
            recorder: ends trials that no slot has.
            print_line: prints a line on the screen of the search.
        """
        assert journal.search is not None
        self._experiment, self._journal, self._stop, self._recorder = experiment, journal, stop, recorder
        self._search: SearchHistory = journal.search
        self._print_line = print_line
        self._received: SimpleQueue[Request] = SimpleQueue()
        self._answers: SimpleQueue[tuple[str, Answer]] = SimpleQueue()
        self._seen: set[str] = set()  # ids of the requests that were received
        self._steers = False  # whether trials are still trained
        self._held: set[str] = set()  # Tune's ids of the trials whose slots know that the search is paused
        self._told: set[str] = set()  # and of those whose slots know that the trial is dropped
        self._drops = any(trial.dropped for trial in self._search.unfinished)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive requests during the block. Those from before are answered, and not carried out."""
        for request in requests.read_all(self._journal.directory):
            id = request if isinstance(request, str) else request.id
            said = self._search.steered.get(id)
            left = "the request is older than this driver and was not carried out; send it again"
            requests.answer(self._journal.directory, id, Answer(said is not None, said or left))
            if said is None:
                self._print_line(f"steered: {left}")
        with repeated("reading the requests of tuner.steer", self._listen, SECONDS, self._print_line):
            self._steers = True
            yield
            self._steers = False
        self._listen()

    def _listen(self) -> None:
        """Receive new requests and answer those that are done; not on Tune's thread, as a store may be slow."""
        for request in requests.read_all(self._journal.directory):
            id = request if isinstance(request, str) else request.id
            if id in self._seen:
                continue
            self._seen.add(id)
            if isinstance(request, str):
                self._answers.put((id, Answer(False, "the request cannot be read: its file is damaged; send it again")))
            elif self._steers:
                self._received.put(request)
            else:
                self._answers.put((id, Answer(False, "the search is ending: its last trial has been trained")))
        while True:
            try:
                id, answer = self._answers.get_nowait()
            except Empty:
                return
            requests.answer(self._journal.directory, id, answer)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Carry out what was received, and tell the slots."""
        self.poll()
        if not (self._drops or self._search.paused or self._held):
            return
        for trial in trials:
            slot, id = trial.temporary_state.ray_actor, trial.trial_id
            if slot is None or trial.config.get("score"):
                continue
            if self._search.trials[trial.config["trial_id"]].dropped and id not in self._told:
                self._told.add(id)
                slot.drop.remote(trial.config["trial_id"])
            if self._search.paused != (id in self._held):
                self._held ^= {id}
                slot.hold.remote(self._search.paused)
        if not self._search.paused:
            self._held.clear()

    def poll(self) -> None:
        """Carry out what was received, on Tune's thread."""
        while not self._received.empty():
            request = self._received.get()
            try:
                answer = Answer(True, self._carry_out(request))
            except TunerError as error:
                answer = Answer(False, str(error))
            self._answers.put((request.id, answer))

    def _carry_out(self, request: Request) -> str:
        """Do what was asked, and return it in a sentence.

        Raises:
            TunerError: it cannot be done, and why.
        """
        if request.verb not in VERBS:
            raise ConfigError(f"{request.verb}: the driver of this search knows only {', '.join(VERBS)}")
        if self._stop.stop_all():
            raise ConfigError(f"the search is ending ({self._stop.reason or 'it was interrupted'})")
        said, fields = VERBS[request.verb](self._experiment, self._search, *request.arguments)
        with self._stop.halting():
            self._journal.append("steered", request=request.id, verb=request.verb, said=said, **fields)
        if request.id not in self._search.steered:
            raise ConfigError(f"the journal cannot be written: {self._stop.fatal_error}")
        self._print_line(f"steered: {said}")
        if request.verb in ("try", "trials"):
            self._stop.exhausted = False
        if request.verb == "drop":
            self._drops = True
            self._recorder.end_where_no_slot_has(self._search.trials[fields["id"]])
        return said


_Decision = tuple[str, dict[str, Any]]  # what is done, in a sentence, and the fields of its entry in the journal


def _try(experiment: Experiment, search: SearchHistory, *assignments: str) -> _Decision:
    settings = {}
    for text in assignments:
        path, equals, written = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"try {text}: must have the form path=value, such as optimizer.learning_rate=0.002")
        settings[path.strip()] = parse(written, f"try {text}", lines=False).plain()
    values = experiment.space.complete(settings)
    experiment.trial_config(values)  # raises where these settings do not go together
    waiting = search.waiting
    number = len(search.trials) + len(waiting)
    wanted = configuration(experiment, values, number)
    for trial in search.trials.values():
        lost = trial.status == "failed" and not trial.failed_by_settings
        if not lost and configuration(experiment, trial.values, trial.number) == wanted:
            raise ConfigError(f"trial {trial.number:03d} has these settings: {_state(trial)}")
    if values in waiting:
        raise ConfigError("these settings wait to be tried already")
    return (
        f"{' '.join(assignments)} is tried next, as trial {number:03d}",
        {"values": values, "planned": max(search.planned, number + 1)},
    )


def _state(trial: TrialHistory) -> str:
    score = "no score yet" if trial.score is None else f"GAP {trial.score:.4f}"
    return f"it failed ({trial.error})" if trial.status == "failed" else f"{score}, {trial.status}"


def _drop(experiment: Experiment, search: SearchHistory, number: str) -> _Decision:
    trial = next((one for one in search.trials.values() if number.isdecimal() and one.number == int(number)), None)
    if trial is None:
        raise ConfigError(f"drop {number}: there is no such trial; {len(search.trials)} have begun, from 000")
    if trial.status != "running":
        raise ConfigError(f"drop {number}: trial {trial.number:03d} has ended: {_state(trial)}")
    if trial.dropped:
        raise ConfigError(f"drop {number}: trial {trial.number:03d} is dropped already")
    return f"trial {trial.number:03d} dropped", {"id": trial.id}


def _pause(experiment: Experiment, search: SearchHistory) -> _Decision:
    if search.paused:
        raise ConfigError("the search is paused already")
    return "paused: no trial begins, and those that run are suspended after their epoch", {}


def _resume(experiment: Experiment, search: SearchHistory) -> _Decision:
    if not search.paused:
        raise ConfigError("the search is not paused")
    return "resumed: trials continue from their checkpoints", {}


def _stop(experiment: Experiment, search: SearchHistory) -> _Decision:
    return "stopped: the trials that run are ended, and the best one is scored", {}


def _trials(experiment: Experiment, search: SearchHistory, count: str) -> _Decision:
    begun = len(search.trials) + len(search.waiting)
    if not count.isdecimal() or not max(1, begun) <= int(count) <= 1_000_000:
        raise ConfigError(f"trials {count}: must be a number of at least {max(1, begun)}: so many have begun or wait")
    if experiment.search.sampler.kind == "grid" and int(count) > search.planned:
        raise ConfigError(f"trials {count}: a grid has no more than its {search.planned} combinations")
    return f"{count} trials are planned instead of {search.planned}", {"planned": int(count)}


VERBS: dict[str, Callable[..., _Decision]] = {
    "try": _try,
    "drop": _drop,
    "stop": _stop,
    "pause": _pause,
    "resume": _resume,
    "trials": _trials,
}
