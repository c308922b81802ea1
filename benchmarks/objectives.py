"""What `samplers.py` searches in place of training: scores computed from the settings, and a table of real trials."""

import csv
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tuner.config.distributions import Choice
from tuner.config.experiment import Experiment, load
from tuner.config.space import Space

HERE = Path(__file__).parent
TABLE = HERE / "yt8m_small_trials.csv"
Values = Mapping[str, Any]  # a suggestion, by parameter name
Objective = Callable[[Values], float | None]  # returns the score; None: a trial with these settings fails


def _hill(value: float, best: float, width: float) -> float:
    """Minus the squared distance to the best value, in widths."""
    return -(((value - best) / width) ** 2)


def smooth(values: Values) -> float:
    """Four numbers, of which the rate matters most."""
    away = _hill(math.log10(values["optimizer.learning_rate"]), -2.6, 1) + _hill(values["model.dropout"], 0.55, 0.6)
    away += _hill(math.log2(values["model.hidden"]), 10.5, 5) + _hill(values["model.variance_power"], 2.8, 4)
    return 0.7 * math.exp(away / 2)


def failing(values: Values) -> float | None:
    """The rate above which training diverges is a factor of five above the best one."""
    rate = values["optimizer.learning_rate"]
    if rate > 0.1:
        return None
    return 0.7 * math.exp((_hill(math.log10(rate), -1.7, 1.5) + _hill(values["model.dropout"], 0.55, 0.6)) / 2)


def memory(values: Values) -> float | None:
    """Two sizes share a memory of 2**20."""
    batch_size, hidden = values["training.batch_size"], values["model.hidden"]
    if batch_size * hidden > 2**20:
        return None
    larger = math.log2(batch_size) / 13 + math.log2(hidden) / 12
    return 0.3 * larger + 0.1 * _hill(math.log10(values["optimizer.learning_rate"]), -2.5, 1)


def conditional(values: Values) -> float:
    """The better model is better only with its own settings, and with a penalty."""
    away = _hill(math.log10(values["optimizer.learning_rate"]), -2, 1)
    if values["model"] == "logistic":
        return 0.6 * math.exp(away / 2)
    away += _hill(values["model.fused_mlp.dropout"], 0.6, 0.5)
    away += _hill(math.log2(values["model.fused_mlp.hidden"]), 10.5, 4)
    penalty = values["loss.l2"] != "0"
    away += _hill(math.log10(values["loss.l2.loguniform"]), 3, 1.5) if penalty else -1
    return 0.7 * math.exp(away / 2)


def finite(values: Values) -> float:
    """Twelve scores without ties."""
    return 0.5 + 0.02 * values["training.epochs"] - 0.01 * abs(int(values["training.batch_size"]) - 15) / 8


class Table:
    """Scores of real trials, continued to all settings: regression with a Gaussian kernel (the mean of a GP).

    The nearest trial would give steps, on which the best score is found by landing in one cell. The kernel's width and
    the noise of a trial's score are those with the smallest error at trials that were left out, one by one.
    """

    def __init__(self, space: Space, rows: list[tuple[Values, float]]) -> None:
        """Fit the scores of `rows`, values and a score for each trial."""
        self._parameters = space.parameters()
        self._points = np.stack([self._coordinates(values) for values, _ in rows])
        scores = np.array([score for _, score in rows])
        self._mean = scores.mean()
        fits = [self._fit(scores - self._mean, width, noise) for width in (0.5, 1, 2, 4) for noise in (0.01, 0.1, 1)]
        error, self._width, self._weights = min(fits, key=lambda fit: fit[0])
        self.explained = 1 - error / float(scores.var())  # R² at trials that were left out

    def __call__(self, values: Values) -> float:
        """The score of settings."""
        kernel = np.exp(-np.square(self._points - self._coordinates(values)).sum(axis=1) / 2 / self._width**2)
        return float(self._mean + kernel @ self._weights)

    def _fit(self, scores: np.ndarray, width: float, noise: float) -> tuple[float, float, np.ndarray]:
        distances = np.square(self._points[:, None] - self._points).sum(axis=-1)
        inverse = np.linalg.inv(np.exp(-distances / 2 / width**2) + noise * np.eye(len(scores)))
        weights = inverse @ scores
        return float(np.square(weights / np.diag(inverse)).mean()), width, weights

    def _coordinates(self, values: Values) -> np.ndarray:
        """A number from 0 to 1, 0.5 where it is not in effect, and a dimension for each option."""
        found: list[float] = []
        for parameter in self._parameters:
            distribution, value = parameter.distribution, values.get(parameter.name)
            if isinstance(distribution, Choice):
                found += [float(value == label) for label in distribution.labels]
            elif value is None:
                found.append(0.5)
            else:
                low, high, here = (
                    math.log(x) if distribution.log else x for x in (distribution.low, distribution.high, float(value))
                )
                found.append((here - low) / (high - low))
        return np.array(found)


def read_table(space: Space, file: Path = TABLE) -> list[tuple[Values, float]]:
    """The values and the score of each trial of the table, which `samplers.py --table-from` writes."""
    numbers = {one.name for one in space.parameters() if not isinstance(one.distribution, Choice)}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [
        (
            {name: float(row[name]) if name in numbers else row[name] for name in space.names() if row[name]},
            max(float(gap) for name, gap in row.items() if name.startswith("gap_")),
        )
        for row in rows
    ]


SYNTHETIC: dict[str, Objective] = {
    "smooth": smooth,
    "failing": failing,
    "memory": memory,
    "conditional": conditional,
    "finite": finite,
}
SPACES = (*SYNTHETIC, "table")


def experiment(name: str, *overrides: str) -> Experiment:
    """The experiment of a space."""
    if name == "table":
        return load(HERE.parent / "experiments.yaml", "yt8m_small", overrides)
    return load(HERE / "samplers.yaml", name, overrides)


@cache
def objective(name: str) -> Objective:
    """What is searched in a space."""
    if name != "table":
        return SYNTHETIC[name]
    space = experiment(name).space
    return Table(space, read_table(space))
