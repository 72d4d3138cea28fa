"""The threshold's promise, against simulated calibrations."""

import numpy as np
import pytest
from scipy import stats

from anomalib_npgmf.merging.threshold import deviations, rate_interval


def true_rates(count: int, rate: float) -> np.ndarray:
    """Rates of false alarms of many calibrations on ``count`` normally distributed scores."""
    scores = np.random.default_rng(count).standard_normal((100_000, count))
    threshold = scores.mean(axis=1) + deviations(count, rate) * scores.std(axis=1, ddof=1)
    return stats.norm.sf(threshold)


@pytest.mark.parametrize("rate", [0.00135, 0.01, 0.1])
@pytest.mark.parametrize("count", [2, 5, 10, 33])
def test_the_rate_holds_on_average_over_calibrations(count: int, rate: float) -> None:
    rates = true_rates(count, rate)
    assert rates.mean() == pytest.approx(rate, abs=5 * rates.std() / len(rates) ** 0.5)


@pytest.mark.parametrize("count", [3, 5, 10, 33])
def test_the_interval_holds_the_middle_95_per_cent_of_calibrations(count: int) -> None:
    low, high = rate_interval(count, 0.01)
    rates = true_rates(count, 0.01)
    assert (rates < low).mean() == pytest.approx(0.025, abs=0.003)
    assert (rates > high).mean() == pytest.approx(0.025, abs=0.003)


def test_three_deviations_are_the_limit_of_many_images() -> None:
    assert deviations(100_000, stats.norm.sf(3.0)) == pytest.approx(3.0, abs=1e-3)


def test_a_single_image_tells_nothing_about_its_rate() -> None:
    assert rate_interval(1, 0.01) == (0.0, 1.0)
    assert deviations(1, 0.01) == pytest.approx(stats.norm.isf(0.01))
