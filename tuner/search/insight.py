"""What a search has learnt about its space: which settings matter, where the best ones lie, whether more trials pay."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from tuner.config.experiment import Experiment
from tuner.config.space import Number
from tuner.project import tune_again
from tuner.search.sampling.suggestions import Suggestions
from tuner.storage.journal import SearchHistory, TrialHistory

# With fewer finished trials, nothing is said.
LEAST_TRIALS = 8
# The best ones are this part of the trials, and at least LEAST_BEST.
BEST, LEAST_BEST = 0.1, 3
# Parameters in a sentence.
SHOWN = 6
# So close to an end of its range, as a part of the range, the middle of the best values says that the range is narrow.
EDGE = 0.05
# More trials are advised where the last quarter brought at least this part of the gain over the first quarter's best.
WORTH = 0.05


def learnt(experiment: Experiment, search: SearchHistory) -> list[str]:
    """What the finished trials of a search say, a sentence each; empty where there are too few of them."""
    if len(search.finished) < LEAST_TRIALS or not experiment.space.names():
        return []
    importances = importance(experiment, search)
    parts = ", ".join(f"{name} {part:.0%}" for name, part in list(importances.items())[:SHOWN])
    best = search.finished[: max(LEAST_BEST, round(BEST * len(search.finished)))]
    return [
        f"what decides whether a trial is among the best (PED-ANOVA of {len(search.finished)} trials): {parts}",
        f"the best {len(best)} trials: {', '.join(_regions(experiment, best, list(importances)[:SHOWN]))}",
        *_narrow(experiment, best),
        *([_last_quarter(search)] if experiment.search.sampler.kind != "grid" and search.ended != "exhausted" else []),
    ]


def importance(experiment: Experiment, search: SearchHistory) -> dict[str, float]:
    """The importance of each parameter for being among the best tenth of the trials, largest first; their sum is 1.

    PED-ANOVA (Watanabe et al., 2023), as Optuna computes it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of small searches, which are said to be small here
        study = Suggestions(experiment, search).study
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def _regions(experiment: Experiment, best: Sequence[TrialHistory], names: Sequence[str]) -> Iterator[str]:
    """Where the best trials lie, for each of the parameters."""
    distributions = {parameter.name: parameter.distribution for parameter in experiment.space.parameters()}
    for name in names:
        values = [trial.values[name] for trial in best if name in trial.values]
        if not values:
            continue
        distribution = distributions[name]
        if isinstance(distribution, Number):
            of = f"{distribution.low:.4g} to {distribution.high:.4g}"
            yield f"{name} {min(values):.4g} to {max(values):.4g} (of {of})"
        else:
            ((label, count),) = Counter(values).most_common(1)
            yield f"{name} {label} ({count} of {len(values)})"


def _narrow(experiment: Experiment, best: Sequence[TrialHistory]) -> Iterator[str]:
    """The parameters whose best values lie at an end of their range."""
    for parameter in experiment.space.parameters():
        number = parameter.distribution
        values = sorted(trial.values[parameter.name] for trial in best if parameter.name in trial.values)
        if not isinstance(number, Number) or len(values) < LEAST_BEST:
            continue
        scale = math.log if number.log else float
        position = (scale(values[len(values) // 2]) - scale(number.low)) / (scale(number.high) - scale(number.low))
        if not EDGE < position < 1 - EDGE:
            end = f"low end, {number.low:.4g}" if position <= EDGE else f"high end, {number.high:.4g}"
            yield f"{parameter.name}: the best trials lie at the {end}; a wider range may hold better ones"


def _last_quarter(search: SearchHistory) -> str:
    """What the last quarter of the trials gained, and whether more of them look worth their time."""
    scores = [trial.score or 0.0 for trial in sorted(search.finished, key=lambda trial: trial.number)]
    quarter = len(scores) // 4
    gain = max(scores) - max(scores[:-quarter])
    whole = max(scores) - max(scores[:quarter])
    sentence = f"the last {quarter} trials gained {gain:+.4f}"
    if gain > 0 and gain >= WORTH * whole:
        return f"{sentence}; more may gain further: {tune_again(search.experiment, '--extend', str(quarter))}"
    return f"{sentence}, of {whole:+.4f} since the first {quarter}; more trials of this space promise little"
