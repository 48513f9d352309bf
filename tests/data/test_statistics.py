import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_episodes import write_dataset

from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.statistics import (
    NUM_QUANTILES,
    ColumnStatistics,
    compute_statistics,
    merge_statistics,
)

PROBABILITIES = np.linspace(0, 1, NUM_QUANTILES)


def rank_error(quantiles, values):
    """How far each quantile's rank in the values is from where it should be, atoms counting as their whole span."""
    ordered = np.sort(values)
    low = np.searchsorted(ordered, quantiles - 1e-9, side="left") / len(ordered)
    high = np.searchsorted(ordered, quantiles + 1e-9, side="right") / len(ordered)
    return np.maximum(0, np.maximum(low - PROBABILITIES, PROBABILITIES - high)).max()


def split(values, sizes):
    return np.split(values, np.cumsum(sizes)[:-1])


def test_statistics_of_one_column_are_numpys():
    values = np.random.default_rng(0).normal(3, 2, (1000, 2)).astype(np.float32)
    statistics = compute_statistics(values)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, exact.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(statistics.minimum, exact.min(axis=0))
    np.testing.assert_array_equal(statistics.maximum, exact.max(axis=0))
    np.testing.assert_allclose(statistics.quantiles, np.quantile(exact, PROBABILITIES, axis=0), rtol=1e-12)


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 1e4, -3.0]),
    seed=st.integers(0, 2**31),
)
def test_merged_moments_and_extremes_equal_those_of_the_whole(sizes, offset, seed):
    values = np.random.default_rng(seed).normal(offset, 1.5, (sum(sizes), 2))
    merged = merge_statistics(map(compute_statistics, split(values, sizes)))
    whole = compute_statistics(values)
    np.testing.assert_array_equal(merged.count, whole.count)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(merged.std, whole.std, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(merged.minimum, whole.minimum)
    np.testing.assert_array_equal(merged.maximum, whole.maximum)
    assert (np.diff(merged.quantiles, axis=0) >= 0).all()
    np.testing.assert_allclose(merged.quantiles[[0, -1]], [whole.minimum, whole.maximum], rtol=1e-9)


def draw_columns():
    generator = np.random.default_rng(0)
    normal = generator.standard_normal(6000)
    return {
        "normal": normal,
        "sorted": np.sort(normal),  # parts with disjoint ranges
        "heavy tails": generator.standard_cauchy(6000),
        "mostly zero": np.where(generator.random(6000) < 0.7, 0.0, normal),
        "saturated": np.clip(2 * normal, -1, 1),
        "two values": (generator.random(6000) < 0.3).astype(float),
        "drifting": normal + np.linspace(0, 10, 6000),
    }


@pytest.mark.parametrize("sizes", [[3000, 3000], [100, 5900], [1000] * 6, [250] * 24, [5, 5995]])
@pytest.mark.parametrize("name", list(draw_columns()))
def test_merged_quantiles_have_nearly_the_right_ranks(name, sizes):
    values = draw_columns()[name]
    merged = merge_statistics(map(compute_statistics, split(values, sizes)))
    assert rank_error(merged.quantiles[:, 0], values) < 0.01


def test_merging_in_stages_stays_close():
    values = draw_columns()["drifting"]
    parts = [compute_statistics(part) for part in split(values, [1000] * 6)]
    staged = merge_statistics([merge_statistics(parts[:2]), merge_statistics(parts[2:])])
    assert rank_error(staged.quantiles[:, 0], values) < 0.01
    np.testing.assert_allclose(staged.std, compute_statistics(values).std, rtol=1e-9)


@pytest.mark.parametrize("name", list(draw_columns()))
def test_merging_parts_one_by_one_stays_close(name):
    values = draw_columns()[name]
    merged, *rest = (compute_statistics(part) for part in split(values, [120] * 50))
    for part in rest:
        merged = merge_statistics([merged, part])
    assert rank_error(merged.quantiles[:, 0], values) < 0.01


def test_merging_a_table_with_itself_leaves_repeated_values_their_weight():
    values = np.concatenate([np.zeros(300), np.linspace(-1, 1, 400), np.ones(300)])
    merged = compute_statistics(values)
    for _ in range(30):
        merged = merge_statistics([merged, merged])
    assert rank_error(merged.quantiles[:, 0], values) < 0.005


def test_values_that_are_not_finite_are_counted_and_left_out():
    values = np.array([[1.0, np.nan], [np.inf, np.nan], [3.0, np.nan], [-np.inf, 5.0]])
    statistics = compute_statistics(values)
    np.testing.assert_array_equal(statistics.count, [2, 1])
    np.testing.assert_array_equal(statistics.num_nonfinite, [2, 3])
    np.testing.assert_array_equal(statistics.mean, [2.0, 5.0])
    np.testing.assert_array_equal(statistics.minimum, [1.0, 5.0])
    np.testing.assert_array_equal(statistics.maximum, [3.0, 5.0])


def test_a_part_without_any_finite_value_changes_only_the_count_of_those():
    values = np.random.default_rng(0).normal(5, 1, 100)
    whole, empty = compute_statistics(values), compute_statistics(np.full(7, np.nan))
    for parts in ([whole, empty], [empty, whole]):
        merged = merge_statistics(parts)
        for name in ("count", "mean", "minimum", "maximum", "quantiles"):
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12)
        np.testing.assert_allclose(merged.std, whole.std, rtol=1e-9)
        np.testing.assert_array_equal(merged.num_nonfinite, [7])


def test_a_column_without_any_finite_value_has_zeros_for_statistics():
    merged = merge_statistics([compute_statistics(np.full(3, np.nan)), compute_statistics(np.full(2, np.inf))])
    assert (merged.count, merged.num_nonfinite) == (0, 5)
    assert (merged.mean, merged.std, merged.minimum, merged.maximum) == (0, 0, 0, 0)
    assert not merged.quantiles.any()


def test_a_constant_column_stays_constant():
    merged = merge_statistics([compute_statistics(np.full(n, 0.1)) for n in (1, 5, 1000)])
    assert merged.minimum == merged.maximum == 0.1
    np.testing.assert_allclose(merged.mean, 0.1, rtol=1e-15)
    np.testing.assert_allclose(merged.std, 0.0, atol=1e-12)
    np.testing.assert_array_equal(merged.quantiles, 0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
def test_statistics_are_float64_whatever_they_are_of(dtype):
    values = np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    statistics = compute_statistics(values)
    for name in ("mean", "m2", "minimum", "maximum", "quantiles"):
        assert getattr(statistics, name).dtype == np.float64, name
    ColumnStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    np.testing.assert_allclose(statistics.mean, [2 / 3, 2 / 3])
    np.testing.assert_array_equal([statistics.minimum, statistics.maximum], [[0, 0], [1, 1]])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [5e-324, 1e-311, 1e-300, 1e149])
def test_numbers_of_any_size_merge(scale):
    values = np.random.default_rng(0).random(600) * scale
    merged = merge_statistics(map(compute_statistics, (values[:200], values[200:], np.zeros(1))))
    assert np.isfinite(merged.quantiles).all()
    assert (np.diff(merged.quantiles[:, 0]) >= 0).all()
    assert (merged.minimum, merged.maximum) == (0, values.max())


def test_nothing_to_merge_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        merge_statistics([])


def test_statistics_survive_json():
    statistics = compute_statistics(np.random.default_rng(0).normal(size=(50, 3)))
    copy = ColumnStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    for name in statistics.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(copy, name), getattr(statistics, name))
        assert getattr(copy, name).dtype == getattr(statistics, name).dtype


def test_statistics_of_a_dataset_are_those_of_its_rows(tmp_path):
    write_dataset(tmp_path, [[50, 70], [40], [60, 10]])
    dataset = open_dataset(tmp_path)
    for name in ("observation", "action", "reward", "goal"):
        values = dataset.read_column(name).reshape(dataset.num_steps, -1).astype(np.float64)
        np.testing.assert_allclose(dataset.statistics[name].mean, values.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(dataset.statistics[name].std, values.std(axis=0), rtol=1e-9)
