"""A slot trains trial after trial in the same worker processes: their numbers, memory and order, on a real Ray."""

import json
import textwrap
from itertools import pairwise
from typing import Any

import pytest

from tests.support.searches import entries_of, processes_of, runs_of, search_of
from tests.support.workplace import Workplace
from tuner.storage.journal import TrialHistory
from tuner.tracking.records import METRICS

pytestmark = pytest.mark.slow

# Metrics that differ between two runs of the same trial.
OF_THE_RUN = {"seconds", "videos_per_second", "worker_memory_gib"}
DATA = """\
data:
  {level}sample: {{directory: shards, train: {train}, validate: 100, shards: 2}}
  train: shards/train*.tfrecord
  validate: shards/validate*.tfrecord
  features: {{mean_rgb: 32, mean_audio: 8}}
  num_classes: 20
"""
FRAMES = DATA.replace("mean_rgb", "rgb").replace("mean_audio", "audio") + "  max_frames: 9\n"
SUPERVISED = """\
model: {kind: fused_mlp, towers: {mean_rgb: 16, mean_audio: 8}, hidden: {choice: [16, 32]}, dropout: {uniform: [0.1, 0.6]}}
optimizer: {kind: adam, learning_rate: {loguniform: [1.0e-3, 1.0e-2]}}
training: {batch_size: 50, epochs: 2, precision: fp32}
"""  # noqa: E501
FRAME_LEVEL = """\
model:
  choice:
    - {kind: lstm, cells: 8}
    - {kind: netvlad, clusters: {rgb: 4, audio: 2}, hidden: 8}
optimizer: {kind: adam, learning_rate: {loguniform: [1.0e-3, 1.0e-2]}}
training: {batch_size: 50, epochs: 2, precision: fp32, frames: {sampling: random, count: 4}}
"""
CONTRASTIVE = """\
pipeline: contrastive
model: {kind: fused_mlp, towers: {mean_rgb: 16, mean_audio: 8}, hidden: 16, dropout: 0.1}
pretrain: {kind: moco_v2, queue: 100, optimizer: {kind: adamw, learning_rate: 1e-3}, batch_size: 64, epochs: 3}
probe: {optimizer: {kind: adam, learning_rate: {loguniform: [1e-3, 1e-2]}}, batch_size: 32, epochs: 3}
training: {precision: fp32}
"""
LINEAR = "model: {kind: linear, penalty: {loguniform: [0.01, 10]}}\ntraining: {precision: fp32}\n"


def write(place: Workplace, experiment: str, *, data: str = DATA, level: str = "", train: int = 200) -> None:
    """Write experiments.yaml: an experiment whose search has one slot on one CPU."""
    text = data.format(level=level, train=train) + experiment
    text += "search: {sampler: {kind: random}, scheduler: {kind: none}, max_concurrent: 1}\nresources: {cpu: 1}\n"
    whole = "default: tiny\nexperiments:\n  tiny:\n" + textwrap.indent(text, "    ")
    (place.folder / "experiments.yaml").write_text(whole)


def finished(place: Workplace, trials: int, *settings: str) -> list[TrialHistory]:
    """Run a search; returns its trials, all of which have finished, without a failure on the way."""
    code, printed = place.run("--trials", str(trials), *(word for setting in settings for word in ("--set", setting)))
    assert code == 0, printed
    assert "resumes from its last checkpoint" not in printed, printed
    search = search_of(place)
    assert [trial.status for trial in search.trials.values()] == ["finished"] * trials
    assert [trial.number for trial in search.trials.values()] == list(range(trials))
    return list(search.trials.values())


def tags_of(place: Workplace) -> list[dict[str, str]]:
    """Return the tags of the runs of the trials, by the number of the trial."""
    tags = [found for found, _, _ in runs_of(place) if "trial_id" in found]
    return sorted(tags, key=lambda found: int(found["trial_number"]))


def repeatable(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that a second run of the trial has as well."""
    return {key: value for key, value in metrics.items() if key in METRICS and key not in OF_THE_RUN}


def train_again(place: Workplace, trial: TrialHistory, **variables: str) -> dict[str, Any]:
    """Train a trial in a new process, and return the metrics of its last epoch."""
    new = Workplace(place.folder, variables=variables)
    done = new.python("-m", "tuner.train", "--trial", trial.id, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "experiment, data, level",
    [
        pytest.param(SUPERVISED, DATA, "", id="supervised"),
        pytest.param(FRAME_LEVEL, FRAMES, "level: frame\n  ", id="frame_level"),
        pytest.param(CONTRASTIVE, DATA, "", id="contrastive"),
    ],
)
def test_a_trial_has_the_numbers_that_a_new_process_gives_it(
    workplace: Workplace, experiment: str, data: str, level: str
) -> None:
    write(workplace, experiment, data=data, level=level)
    trials = finished(workplace, 8, "resources.cpu=0.5")
    tags = tags_of(workplace)
    assert len({found["process"] for found in tags}) == 1  # one process has trained all of them
    assert {found["threads"] for found in tags} == {"1"}
    if experiment is CONTRASTIVE:
        assert {found["encoder_made_by"] for found in tags} == {trials[0].id}
        assert min(trials[7].reports) > 1  # trial 7 has not pretrained; neither does the new process
    last = repeatable(trials[7].reports[trials[7].last_epoch])
    # The threads are those of `resources.cpu`, whatever the environment says.
    again = repeatable(train_again(workplace, trials[7], OMP_NUM_THREADS="2"))
    assert again == last and {"gap", "loss_train", "loss_validate"} <= last.keys()


def test_two_hundred_trials_leave_nothing_in_the_memory_of_their_worker(workplace: Workplace) -> None:
    write(workplace, SUPERVISED)
    driver = workplace.start("--trials", "200", "--set", "training.epochs=1")
    threads = []
    for ended in (20, 180):
        workplace.wait_for_line(driver, f"trial {ended:03d}  epoch 1/1")
        (worker,) = processes_of(workplace, "RayTrainWorker")
        threads.append(worker.num_threads())
    assert driver.wait(300) == 0, workplace.printed()
    trials = list(search_of(workplace).trials.values())
    assert len({found["process"] for found in tags_of(workplace)}) == 1
    gib = [trial.reports[1]["worker_memory_gib"] for trial in trials]
    assert len(gib) == 200 and gib[199] <= 1.1 * gib[19]
    assert threads[1] <= threads[0] + 2  # those of the trial that runs may be there or not


def test_a_worker_ends_after_trials_per_worker_trials(workplace: Workplace) -> None:
    """Also a search of `model.kind: linear`."""
    write(workplace, LINEAR)
    finished(workplace, 4, "search.trials_per_worker=2")
    first, second, third, fourth = (found["process"] for found in tags_of(workplace))
    assert first == second != third == fourth
    assert {status for _, status, _ in runs_of(workplace)} == {"FINISHED"}


def test_a_trial_is_stopped_in_the_middle_of_an_epoch(workplace: Workplace) -> None:
    """Between the last report of a stopped trial and the first epoch of the next one, no epoch of it is trained."""
    write(workplace, SUPERVISED, train=6000)
    asha = "search.scheduler={kind: asha, grace: 1, reduction: 4}"
    trials = finished(workplace, 5, asha, "training.epochs=3", "training.batch_size=2")
    reported = {(e["id"], e["epoch"]): e["time"] for e in entries_of(workplace) if e["type"] == "report"}
    waits = []
    for stopped, after in pairwise(trials):
        if stopped.last_epoch < 3:
            assert stopped.stopped_by == "asha"
            between = reported[after.id, 1] - reported[stopped.id, stopped.last_epoch]
            waits.append(between - after.reports[1]["seconds"])
            assert stopped.reports[1]["seconds"] > 1.5
    assert waits and max(waits) < 1


@pytest.mark.parametrize("workers", ["2", "{min: 1, max: 2}"], ids=["two", "elastic"])
def test_several_workers_train_trial_after_trial(workplace: Workplace, workers: str) -> None:
    write(workplace, SUPERVISED)
    finished(workplace, 4, f"resources.workers={workers}")
    assert len({found["process"] for found in tags_of(workplace)}) == 1
