"""How far above the mean of normal scores a threshold lies, for a given false alarm rate."""

import math

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
_STEPS = 2000


def deviations(count: int, rate: float) -> float:
    """Standard deviations between the mean of normal scores and the threshold.

    For normally distributed scores, a further normal image exceeds ``mean + k std`` with probability ``rate`` over
    both the image and the calibration images: ``k = t sqrt(1 + 1 / count)`` with the quantile t of Student's
    distribution, the bound of a prediction interval. k grows for few images, which estimate mean and std poorly.

    Args:
        count: Number of normal images that mean and sample standard deviation come from; with fewer than two, k is the
            quantile of the normal distribution.
        rate: Share of normal images that may exceed the threshold, in (0, 0.5).

    Example:
        >>> [round(deviations(count, 0.01), 2) for count in (5, 10, 30, 1000)]
        [4.1, 2.96, 2.5, 2.33]
    """
    if count < 2:
        return float(stats.norm.isf(rate))
    return float(stats.t.isf(rate, count - 1)) * math.sqrt(1 + 1 / count)


def rate_interval(count: int, rate: float) -> tuple[float, float]:
    """95 % confidence interval of the true false alarm rate of one calibration.

    `deviations` keeps the rate on average over calibrations; that of a single one, on ``count`` images, varies. For
    normally distributed scores it follows from the distributions of sample mean and deviation (a tolerance limit).

    Args:
        count: Number of normal calibration images.
        rate: As for `deviations`.

    Returns:
        Lower and upper limit, in [0, 1]; (0, 1) for fewer than two images.

    Example:
        >>> [tuple(round(limit, 4) for limit in rate_interval(count, 0.01)) for count in (10, 1000)]
        [(0.0, 0.071), (0.0071, 0.0135)]
    """
    if count < 2:
        return 0.0, 1.0
    # sample standard deviations relative to the true one, at the midpoints of equally likely steps
    steps = (np.arange(_STEPS) + 0.5) / _STEPS
    spreads = np.sqrt(stats.chi2.ppf(steps, count - 1) / (count - 1))
    reached = deviations(count, rate) * spreads

    def limit(probability: float) -> float:
        """Rate that the true one stays below with a probability."""

        def excess(z: float) -> float:
            # the threshold lies above the true quantile z with this probability
            return float(stats.norm.cdf(math.sqrt(count) * (reached - z)).mean()) - probability

        return float(stats.norm.sf(optimize.brentq(excess, -10.0, float(reached[-1]) + 10.0)))

    tail = (1 - CONFIDENCE) / 2
    return limit(tail), limit(1 - tail)
