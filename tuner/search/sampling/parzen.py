"""The densities that TPE compares: mixtures of one kernel for each trial, and one for the whole space.

As in Optuna's sampler (multivariate TPE, Falkner et al. 2018, arXiv:1807.01774), with all parameters computed at once:
tests/search/sampling/test_parzen.py compares the two. A number has a normal distribution, cut off at the ends of its
range, around the trial's value, or around its logarithm; its deviation is the larger distance to a neighbouring value.
A choice has the trial's option more often than the others.

Shapes   T trials   K = T + 1 kernels   N numbers   C choices   O options of the choice that has most   S points
"""

from collections.abc import Sequence

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.special import ndtr, ndtri

# So many of the newest trials have the full weight; older ones have the less, the older they are.
FULL_WEIGHT = 25
# A deviation is at least this share of the range, and a larger share where there are few trials.
MIN_DEVIATION = 0.01


class Parzen:
    """The density of trials in a space."""

    def __init__(self, space: Sequence[BaseDistribution], values: np.ndarray) -> None:
        """Place the kernels.

        Args:
            space: the parameters.
            values: [parameters, T], oldest trial first, as Optuna represents them internally: an option is its number.
        """
        self._chosen = np.array([isinstance(distribution, CategoricalDistribution) for distribution in space])
        choices = [each for each in space if isinstance(each, CategoricalDistribution)]
        numbers = [each for each in space if isinstance(each, FloatDistribution | IntDistribution)]
        self._weights_K = _weights(values.shape[1])
        self._choices = _Choices([len(each.choices) for each in choices], values[self._chosen])
        self._numbers = _Numbers(numbers, values[~self._chosen])

    def sample(self, rng: np.random.RandomState, size: int) -> np.ndarray:
        """Draw points [parameters, S]."""
        kernels_S = rng.choice(len(self._weights_K), p=self._weights_K, size=size)
        drawn = np.empty((len(self._chosen), size))
        drawn[self._chosen] = self._choices.sample(rng, kernels_S)
        drawn[~self._chosen] = self._numbers.sample(rng, kernels_S)
        return drawn

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """The logarithm of the density at points [parameters, S], but for a summand that is the same for all: [S]."""
        logs_SK = self._choices.log_density(points[self._chosen]) + self._numbers.log_density(points[~self._chosen])
        logs_SK = logs_SK + np.log(self._weights_K)
        largest_S1 = logs_SK.max(axis=1, keepdims=True)
        logs_S: np.ndarray = np.log(np.exp(logs_SK - largest_S1).sum(axis=1)) + largest_S1[:, 0]
        return logs_S


class _Choices:
    def __init__(self, options: Sequence[int], values_CT: np.ndarray) -> None:
        num_choices, num_trials = values_CT.shape
        self._own_CK = np.append(values_CT, np.full((num_choices, 1), -1), axis=1)  # the last kernel prefers no option
        self._options_C = np.array(options, int)
        self._other = 1 / (num_trials + 1)  # the weight of each option; the trial's own has one more
        self._sums_CK = (self._own_CK >= 0) + self._options_C[:, None] * self._other

    def sample(self, rng: np.random.RandomState, kernels_S: np.ndarray) -> np.ndarray:
        quantiles_CS = rng.rand(len(self._options_C), len(kernels_S))
        options_O = np.arange(self._options_C.max(initial=0))
        weights_CSO = (self._own_CK[:, kernels_S, None] == options_O) + self._other
        below_CSO = np.cumsum(weights_CSO, axis=-1) < (quantiles_CS * self._sums_CK[:, kernels_S])[..., None]
        return np.minimum(below_CSO.sum(axis=-1), self._options_C[:, None] - 1)

    def log_density(self, points_CS: np.ndarray) -> np.ndarray:
        own_SK = (points_CS[:, :, None] == self._own_CK[:, None, :]).sum(axis=0)
        logs: np.ndarray = own_SK * np.log1p(1 / self._other) - np.log(self._sums_CK).sum(axis=0)
        return logs


class _Numbers:
    def __init__(self, space: Sequence[FloatDistribution | IntDistribution], values_NT: np.ndarray) -> None:
        self._low_N1, self._high_N1 = _column([d.low for d in space]), _column([d.high for d in space])
        self._step_N1 = _column([d.step or 0 for d in space])
        self._log_N1 = _column([d.log for d in space]) > 0
        low_N1 = self._scaled(self._low_N1 - self._step_N1 / 2)
        high_N1 = self._scaled(self._high_N1 + self._step_N1 / 2)
        middle_N1, range_N1 = (low_N1 + high_N1) / 2, high_N1 - low_N1
        values_NT = self._scaled(values_NT)
        self._means_NK = np.append(values_NT, middle_N1, axis=1)
        self._deviations_NK = np.append(_deviations(values_NT, low_N1, high_N1), range_N1, axis=1)
        self._below_NK = ndtr((low_N1 - self._means_NK) / self._deviations_NK)  # probability that is cut off
        self._mass_NK = ndtr((high_N1 - self._means_NK) / self._deviations_NK) - self._below_NK

    def sample(self, rng: np.random.RandomState, kernels_S: np.ndarray) -> np.ndarray:
        quantiles_NS = rng.uniform(size=(len(self._means_NK), len(kernels_S)))
        normal_NS = ndtri(self._below_NK[:, kernels_S] + quantiles_NS * self._mass_NK[:, kernels_S])
        drawn_NS = normal_NS * self._deviations_NK[:, kernels_S] + self._means_NK[:, kernels_S]
        drawn_NS = np.exp(drawn_NS, out=drawn_NS, where=self._log_N1)
        step_N1 = np.where(self._step_N1 > 0, self._step_N1, 1)
        steps_NS = self._low_N1 + np.round((drawn_NS - self._low_N1) / step_N1) * step_N1
        return np.clip(np.where(self._step_N1 > 0, steps_NS, drawn_NS), self._low_N1, self._high_N1)

    def log_density(self, points_NS: np.ndarray) -> np.ndarray:
        logs_SK = -np.log(self._mass_NK).sum(axis=0)
        smooth = self._step_N1[:, 0] == 0
        means_NK, deviations_NK = self._means_NK[:, None], self._deviations_NK[:, None]
        if smooth.any():
            points = self._scaled(points_NS)[smooth, :, None]
            squares_SK = np.square((points - means_NK[smooth]) / deviations_NK[smooth]).sum(axis=0)
            logs_SK = logs_SK - squares_SK / 2 - np.log(np.sqrt(2 * np.pi) * self._deviations_NK[smooth]).sum(axis=0)
        if not smooth.all():
            ends = (self._scaled(points_NS + sign * self._step_N1 / 2)[~smooth, :, None] for sign in (-1, 1))
            left, right = ((end - means_NK[~smooth]) / deviations_NK[~smooth] for end in ends)
            right_side = left > 0  # both near 1, where ndtr has no digits left for their difference
            left, right = np.where(right_side, -right, left), np.where(right_side, -left, right)
            with np.errstate(divide="ignore"):  # a kernel far away: the last one covers the whole range
                logs_SK = logs_SK + np.log(ndtr(right) - ndtr(left)).sum(axis=0)
        return logs_SK

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """The values, or their logarithms where the parameter has a logarithmic scale."""
        return np.log(values, out=np.array(values, float), where=self._log_N1)


def _weights(num_trials: int) -> np.ndarray:
    """Of the trials, oldest first, and of the last kernel."""
    ramp = np.linspace(1 / max(num_trials, 1), 1, num=max(num_trials - FULL_WEIGHT, 0))
    weights_K = np.append(ramp, np.ones(num_trials - len(ramp) + 1))
    return weights_K / weights_K.sum()


def _deviations(values_NT: np.ndarray, low_N1: np.ndarray, high_N1: np.ndarray) -> np.ndarray:
    """The larger distance of each value to a neighbour; of the first and the last value, to the only neighbour."""
    order_NT = np.argsort(values_NT, axis=1)
    sorted_NT = np.take_along_axis(values_NT, order_NT, axis=1)
    gaps = np.diff(np.concatenate([low_N1, sorted_NT, high_N1], axis=1), axis=1)
    if values_NT.shape[1] > 1:
        gaps[:, [0, -1]] = 0
    deviations_NT = np.empty_like(values_NT)
    np.put_along_axis(deviations_NT, order_NT, np.maximum(gaps[:, :-1], gaps[:, 1:]), axis=1)
    range_N1 = high_N1 - low_N1
    smallest = max(MIN_DEVIATION, 1 / (values_NT.shape[1] + 2))
    return np.clip(deviations_NT, smallest * range_N1, range_N1)


def _column(numbers: Sequence[float]) -> np.ndarray:
    return np.array(numbers, float).reshape(-1, 1)
