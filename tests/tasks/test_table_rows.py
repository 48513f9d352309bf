"""Rows of benchmark tables: intervals over training seeds and episodes, and rows of earlier runs."""

import numpy as np
import pytest
from scipy import stats

from diffplan.tasks.table_rows import find_interval, merge_rows, resample_means


def test_the_interval_of_one_seed_is_that_of_its_episodes():
    scores = np.random.default_rng(0).normal(50.0, 10.0, 100)
    low, high = find_interval(resample_means([scores]))
    expected = stats.norm.interval(0.95, scores.mean(), scores.std() / 10)
    assert (low, high) == pytest.approx(expected, abs=0.3)


def test_the_interval_of_several_seeds_has_the_spread_between_them_and_that_of_episodes():
    generator = np.random.default_rng(1)
    middles = generator.normal(50.0, 5.0, 20)
    scores = [generator.normal(middle, 10.0, 40) for middle in middles]
    deviation = resample_means(scores).std()
    means = np.array([values.mean() for values in scores])
    within = np.mean([values.var() / len(values) for values in scores])
    assert deviation == pytest.approx(np.sqrt((means.var() + within) / 20), rel=0.05)
    assert resample_means([[7.0] * 5, [7.0] * 3]).tolist() == [7.0] * 4_000


def test_seeds_may_have_different_numbers_of_episodes_and_weigh_alike():
    assert resample_means([[0.0] * 90, [10.0] * 10]).mean() == pytest.approx(5.0, abs=0.3)


def test_new_rows_replace_those_of_the_same_cell_and_leave_the_others():
    def row(task, method, score):
        return {"protocol": "medium", "task": task, "method": method, "score_mean": score}

    earlier = [row("hopper", "bc", 1.0), row("hopper", "planner", 2.0)]
    later = [row("hopper", "planner", 3.0), row("walker", "bc", 4.0)]
    assert merge_rows(earlier, later) == [row("hopper", "bc", 1.0), *later]
    assert merge_rows([], later) == later
