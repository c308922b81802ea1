"""TPE on a long search: exactly Optuna's up to a length, then based on the best and the newest trials alone."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.search.sampling import tpe
from tuner.search.sampling.tpe import RecentTPE

SPACE = {"dropout": FloatDistribution(0, 1), "rate": FloatDistribution(1e-4, 1, log=True)}


def study_of(num_finished: int, num_running: int = 0) -> list[FrozenTrial]:
    """Trials whose score is highest at dropout 0.3 and a rate of 0.01."""
    draw = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = []
    for number in range(num_finished + num_running):
        params = draw.ask(dict(SPACE)).params
        score = 1 - (params["dropout"] - 0.3) ** 2 - (params["rate"] - 0.01) ** 2
        running = number >= num_finished
        state = TrialState.RUNNING if running else TrialState.COMPLETE
        trials.append(
            create_trial(params=params, distributions=dict(SPACE), state=state, value=None if running else score)
        )
    return trials


def next_after(trials: list[FrozenTrial], sampler: BaseSampler) -> dict[str, float]:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study.ask(dict(SPACE)).params


def recent(seed: int = 7) -> RecentTPE:
    return RecentTPE([], seed=seed, constant_liar=True)


@pytest.mark.parametrize(("finished", "running"), [(5, 0), (30, 0), (30, 6), (tpe.HISTORY, 3)])
def test_while_no_trial_is_left_out_it_suggests_what_optuna_does(finished: int, running: int) -> None:
    trials = study_of(finished, running)
    for seed in range(3):
        theirs = next_after(trials, TPESampler(seed=seed, constant_liar=True))
        assert next_after(trials, recent(seed)) == pytest.approx(theirs, rel=1e-9)


def test_past_its_history_the_best_of_all_and_the_newest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpe, "HISTORY", 40)
    trials = study_of(200, 10)
    suggested = next_after(trials, recent())
    ranked = sorted(range(200), key=lambda number: -(trials[number].value or 0))
    old_and_poor = [number for number in ranked[tpe.BEST :] if number < 160]
    kept = [trial for number, trial in enumerate(trials) if number not in old_and_poor]
    assert len(kept) < 40 + tpe.BEST + 10 + 1
    assert suggested == next_after(kept, recent())
    assert suggested == pytest.approx(next_after(kept, TPESampler(seed=7, constant_liar=True)), rel=1e-9)
    best_old = next(number for number in ranked if number < 160)
    assert suggested != next_after(trials[:best_old] + trials[best_old + 1 :], recent())


def test_at_most_as_many_running_trials_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpe, "HISTORY", 40)
    trials = study_of(60, 100)
    assert next_after(trials, recent()) == next_after(trials[:60] + trials[-39:], recent())


def test_parameters_that_only_some_trials_have_are_drawn_independently() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials(study_of(30))
    sampler = RecentTPE(["rate"], seed=7, constant_liar=True)
    assert sampler.infer_relative_search_space(study, study.get_trials()[-1]) == {"dropout": SPACE["dropout"]}
