"""What is kept of a study between suggestions is what would be read anew."""

import numpy as np
import optuna
from optuna.trial import TrialState

from tuner.search.sampling import observations


def test_what_is_kept_is_what_a_new_reader_finds() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    rng, running = np.random.default_rng(1), []
    for _ in range(300):
        observed = observations.of(study)  # sees the trial before it has parameters, as a sampler does
        trial = study.ask()
        observations.of(study)
        trial.suggest_float("rate", 0, 1)
        if trial.suggest_categorical("kind", ["a", "b"]) == "b":
            trial.suggest_int("size", 1, 9)
        running.append(trial)
        for _ in range(rng.integers(3)):
            if running:
                ended = running.pop(rng.integers(len(running)))
                score = None if rng.random() < 0.2 else rng.choice([0.5, rng.random()])
                study.tell(ended, score, state=TrialState.FAIL if score is None else None)
    anew = observations.Observations()
    anew.update(study.get_trials(deepcopy=False))
    observed = observations.of(study)
    assert observed.ranked == anew.ranked and len(anew.ranked) > 100
    assert observed.complete == anew.complete == sorted(number for _, number in anew.ranked)
    assert observed.unfinished == anew.unfinished and observed.distributions == anew.distributions
    numbers = [*anew.complete, *anew.unfinished]
    for names in (["rate", "kind"], ["size", "rate"]):
        values = observed.values(names, numbers)
        assert np.array_equal(values, anew.values(names, numbers))
        having = [trial for trial in (study.trials[number] for number in numbers) if set(names) <= trial.params.keys()]
        assert values[names.index("rate")].tolist() == [trial.params["rate"] for trial in having]


def test_the_best_comes_first_and_of_equal_ones_the_earlier() -> None:
    study = optuna.create_study(direction="maximize")
    for score in (0.5, float("-inf"), 0.7, 0.5, 0.7):
        study.tell(study.ask(), score)
    assert [number for _, number in observations.of(study).ranked] == [2, 4, 0, 3, 1]


def test_a_parameter_that_no_newer_trial_has_is_still_read() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(200):
        trial = study.ask()
        drawn = [trial.suggest_float("rate", 0, 1)] if number < 2 else []
        study.tell(trial, 0.0)
        assert observations.of(study).values(["rate"], range(number + 1)).shape[1] == min(number + 1, 2)
        assert not drawn or observations.of(study).values(["rate"], [number]).tolist() == [drawn]
