"""The statistics of `hetlora compare`, by SciPy: intervals over seeds, differences to a baseline, Holm's correction.

Below ten seeds Student's t, from ten on the bootstrap (BCa, fixed seed) for intervals and sign flips for paired p.
"""

import math
from dataclasses import dataclass

import numpy as np

from hetlora.errors import need

BOOTSTRAP_FROM = 10
RESAMPLES = 9999
RANDOM_SEED = 20240501

T_INTERVAL = "Student's t"
BOOTSTRAP_INTERVAL = "bootstrap (BCa)"
PAIRED_T = "paired t"
PAIRED_BOOTSTRAP = "paired: bootstrap (BCa), p by sign flips"
WELCH = "Welch's t, unpaired"
NONE = "one seed: no interval"


@dataclass(frozen=True)
class Estimate:
    """A mean, its interval (NaN where there is none), the p-value of "it is 0" (NaN where not tested), and how."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    how: str = NONE
    n: int = 1


def mean_interval(values: np.ndarray, level: float) -> Estimate:
    """Mean over seeds, values [seed], and its interval of confidence `level` (0..1)."""
    stats = need("scipy.stats", "data")
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Estimate(mean, n=n)
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean, how="all seeds equal", n=n)
    if n >= BOOTSTRAP_FROM:
        low, high = _bootstrap(values, level)
        return Estimate(mean, low, high, how=BOOTSTRAP_INTERVAL, n=n)
    found = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    return Estimate(mean, float(found.low), float(found.high), how=T_INTERVAL, n=n)


def paired_difference(differences: np.ndarray, level: float) -> Estimate:
    """Mean of the differences [seed] of two methods on the same seeds, with interval and two-sided p."""
    stats = need("scipy.stats", "data")
    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2:
        return Estimate(mean, n=n)
    if np.ptp(differences) == 0:
        return Estimate(mean, mean, mean, how="paired; all differences equal: no test", n=n)
    if n >= BOOTSTRAP_FROM:
        low, high = _bootstrap(differences, level)
        flips = stats.permutation_test(
            (differences, np.zeros(n)), _mean_of_pairs, permutation_type="samples", n_resamples=RESAMPLES,
            **_fixed_seed(stats.permutation_test),
        )  # fmt: skip
        return Estimate(mean, low, high, float(flips.pvalue), PAIRED_BOOTSTRAP, n)
    test = stats.ttest_1samp(differences, 0.0)
    found = test.confidence_interval(level)
    return Estimate(mean, float(found.low), float(found.high), float(test.pvalue), PAIRED_T, n)


def unpaired_difference(values: np.ndarray, baseline: np.ndarray, level: float) -> Estimate:
    """Difference of the means of two methods on different seeds, by Welch's test."""
    stats = need("scipy.stats", "data")
    mean = float(np.mean(values) - np.mean(baseline))
    n = min(len(values), len(baseline))
    if n < 2:
        return Estimate(mean, n=n)
    if np.ptp(values) == 0 and np.ptp(baseline) == 0:
        return Estimate(mean, mean, mean, how="unpaired; all seeds equal: no test", n=n)
    test = stats.ttest_ind(values, baseline, equal_var=False)
    found = test.confidence_interval(level)
    return Estimate(mean, float(found.low), float(found.high), float(test.pvalue), WELCH, n)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction of several p-values; NaN (not tested) stays NaN and does not count."""
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = list(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(tested) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _mean_of_pairs(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(one, axis=axis) - np.mean(other, axis=axis)


def _bootstrap(values: np.ndarray, level: float) -> tuple[float, float]:
    stats = need("scipy.stats", "data")
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="BCa", **_fixed_seed(stats.bootstrap)
    ).confidence_interval
    return float(found.low), float(found.high)


def _fixed_seed(function) -> dict:
    """The random generator's keyword: `rng` since SciPy 1.15."""
    import inspect

    name = "rng" if "rng" in inspect.signature(function).parameters else "random_state"
    return {name: np.random.default_rng(RANDOM_SEED)}
