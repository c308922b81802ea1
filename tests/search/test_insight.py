"""What a search says about its space at its end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.search.test_searcher import CONDITIONAL, CONTINUOUS, Driver, experiment_of
from tuner.config.experiment import Experiment
from tuner.search.insight import importance, learnt
from tuner.storage.journal import SearchHistory

Searched = Callable[..., tuple[Experiment, SearchHistory]]


@pytest.fixture
def searched(tmp_path: Path) -> Iterator[Searched]:
    """Runs searches; their journals are closed after the test."""
    drivers: list[Driver] = []

    def run(text: str = CONTINUOUS, sampler: str = "random", trials: int = 40) -> tuple[Experiment, SearchHistory]:
        experiment = experiment_of(tmp_path, sampler, text, trials=trials)
        drivers.append(Driver(tmp_path / f"search-{len(drivers)}", experiment))
        drivers[-1].run()
        assert drivers[-1].journal.search is not None
        return experiment, drivers[-1].journal.search

    yield run
    for driver in drivers:
        driver.close()


def test_the_setting_that_decides_the_score_is_the_most_important(searched: Searched) -> None:
    parts = importance(*searched())  # the score depends on dropout up to 0.12, on the learning rate up to 0.006
    assert list(parts) == ["model.dropout", "optimizer.learning_rate"]
    assert sum(parts.values()) == pytest.approx(1) and parts["model.dropout"] > 0.6


def test_the_region_of_the_best_is_around_the_maximum(searched: Searched) -> None:
    experiment, search = searched()
    _, regions, *_ = learnt(experiment, search)
    values = sorted(trial.values["model.dropout"] for trial in search.finished[:4])
    assert regions.startswith(f"the best 4 trials: model.dropout {values[0]:.4g} to {values[-1]:.4g} (of 0.1 to 0.6)")
    assert values[0] <= 0.25 <= values[-1] or abs(values[0] - 0.25) < 0.05


def test_a_range_at_whose_end_the_best_lie_is_named(searched: Searched) -> None:
    narrow = CONTINUOUS.replace("{uniform: [0.1, 0.6], default: 0.3}", "{uniform: [0.3, 0.9], default: 0.5}")
    sentences = learnt(*searched(narrow, "tpe"))
    assert "model.dropout: the best trials lie at the low end, 0.3; a wider range may hold better ones" in sentences
    assert not any("optimizer.learning_rate: the best" in sentence for sentence in sentences)


def test_options_and_their_own_settings_are_counted(searched: Searched) -> None:
    experiment, search = searched(CONDITIONAL)
    parts = importance(experiment, search)
    assert set(parts) == set(experiment.space.names())
    assert any(" of 4)" in sentence for sentence in learnt(experiment, search))


def test_more_trials_are_advised_only_where_the_last_ones_gained(searched: Searched) -> None:
    experiment, search = searched(trials=16)
    trials = list(search.trials.values())
    trials[0].reports[1]["gap"], trials[-1].reports[1]["gap"] = 0.95, 0.94
    assert learnt(experiment, search)[-1].endswith("more trials of this space promise little")
    trials[-1].reports[1]["gap"] = 0.99
    assert "--extend 4" in learnt(experiment, search)[-1] and "gained +0.0400" in learnt(experiment, search)[-1]


def test_few_trials_and_a_space_without_parameters_say_nothing(searched: Searched, tmp_path: Path) -> None:
    assert learnt(*searched(trials=7)) == []
    _, search = searched(trials=9)
    fixed = CONTINUOUS.replace("{uniform: [0.1, 0.6], default: 0.3}", "0.3").replace(
        "{loguniform: [1e-4, 1e-1]}", "0.1"
    )
    assert learnt(experiment_of(tmp_path, "random", fixed), search) == []
