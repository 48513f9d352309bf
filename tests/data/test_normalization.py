import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from diffplan.data.format.manifest import Column
from diffplan.data.format.statistics import NUM_QUANTILES, compute_statistics, merge_statistics
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import CheckpointError, DataError


def make_columns():
    generator = np.random.default_rng(0)
    positions = generator.uniform(0.5, 9.0, (500, 2)).astype(np.float32)
    velocities = generator.normal(0, 2, (500, 2)).astype(np.float32)
    return positions, velocities


def fit(kind, *columns):
    return Normalizer.fit([compute_statistics(column) for column in columns], kind)


def test_limits_maps_each_range_to_minus_one_and_one():
    columns = make_columns()
    normalized = fit("limits", *columns).normalize(np.concatenate(columns, axis=1))
    np.testing.assert_allclose(normalized.min(axis=0), -1, atol=1e-6)
    np.testing.assert_allclose(normalized.max(axis=0), 1, atol=1e-6)


def test_gaussian_maps_to_mean_zero_and_deviation_one():
    columns = make_columns()
    normalized = fit("gaussian", *columns).normalize(np.concatenate(columns, axis=1))
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["limits", "gaussian", "quantile"])
def test_unnormalize_is_the_inverse_for_arrays_and_tensors(kind):
    columns = make_columns()
    normalizer = fit(kind, *columns)
    values = np.concatenate(columns, axis=1).reshape(10, 50, 4)
    back = normalizer.unnormalize(normalizer.normalize(values))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, atol=1e-5)
    tensor = torch.from_numpy(values)
    normalized = normalizer.normalize(tensor)
    assert normalized.dtype == torch.float32
    np.testing.assert_allclose(normalized.numpy(), normalizer.normalize(values), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normalizer.unnormalize(normalized), tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["limits", "gaussian", "quantile"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.5])
def test_constant_entry_is_mapped_to_zero_and_back(kind, constant):
    column = np.stack([np.full(100, constant), np.linspace(-1, 2, 100)], axis=1).astype(np.float32)
    normalizer = fit(kind, column)
    normalized = normalizer.normalize(column)
    np.testing.assert_allclose(normalized[:, 0], 0, atol=1e-3 if abs(constant) > 100 else 1e-6)
    assert np.isfinite(normalized).all()
    np.testing.assert_array_equal(normalizer.unnormalize(np.zeros((3, 2), np.float32))[:, 0], np.float32(constant))


OFFSETS = st.floats(-1e9, 1e9)
SPANS = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)


@given(offset=OFFSETS, span=SPANS, kind=st.sampled_from(["limits", "gaussian", "quantile"]), data=st.data())
def test_offset_and_span_are_kept_or_refused(offset, span, kind, data):
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    values = (offset + np.linspace(0, span, 101)).astype(dtype)[:, None]
    assume(values.min() < values.max())
    normalizer = refusal = None
    try:
        normalizer = Normalizer.fit([compute_statistics(values)], kind, [Column("observation", (1,), dtype)])
    except DataError as error:
        refusal = str(error)
    if normalizer is None:
        assert refusal.startswith("normalization: observation[0]: expected numbers that float32")
        assert 1e-4 * span < np.spacing(np.float32(np.abs(values).max())), "refused without need"
        return
    if kind == "quantile":  # merges knots that are closer than this
        assume(span / 100 > 2e-6 * np.abs(values).max())
    seen = values.astype(np.float32)
    normalized = normalizer.normalize(seen)
    assert len(np.unique(normalized)) == len(np.unique(values))
    back = normalizer.unnormalize(normalized)
    # To half a step of float32 each, in the value, in model space and back.
    step = np.spacing(np.abs(seen).max())
    np.testing.assert_allclose(back.astype(np.float64), values, rtol=0, atol=1.5 * step + 1e-6 * span)
    if kind != "gaussian":
        assert np.abs(normalized).max() == pytest.approx(1, abs=1e-3)


def test_a_column_of_small_numbers_is_scaled_and_not_constant():
    values = np.linspace(-8e-7, 8e-7, 100, dtype=np.float32)[:, None]
    normalized = fit("limits", values).normalize(values)
    assert (normalized.min(), normalized.max()) == (-1.0, 1.0)


def test_metres_of_a_distant_origin_are_refused_as_float64_and_whole_as_local_ones():
    distant = 5_572_094.155 + np.linspace(0, 6, 101)[:, None]
    statistics, column = [compute_statistics(distant)], Column("observation", (1,), "float64")
    with pytest.raises(DataError, match=r"observation\[0\].*5572094.155 to 5572100.155.*steps of 0.5; subtract"):
        Normalizer.fit(statistics, "limits", [column])
    local = distant - 5_572_094
    normalized = Normalizer.fit([compute_statistics(local)], "limits", [column]).normalize(local)
    assert len(np.unique(normalized)) == 101


@pytest.mark.parametrize("kind", ["limits", "gaussian"])
def test_few_values_of_float32_far_from_zero_stay_apart(kind):
    """A unit quaternion's largest entry, next to 1."""
    values = np.float32(1) - np.arange(4, dtype=np.float32)[:, None] * np.float32(2**-24)
    normalizer = fit(kind, values)
    normalized = normalizer.normalize(values)
    assert len(np.unique(normalized)) == 4
    np.testing.assert_array_equal(normalizer.unnormalize(normalized), values)
    if kind == "limits":
        assert np.abs(normalized).max() == 1.0


def test_normalizer_survives_json_bit_for_bit():
    normalizer = fit("limits", *make_columns())
    assert json.loads(normalizer.to_json())["kind"] == "affine"
    copy = Normalizer.from_json(normalizer.to_json())
    np.testing.assert_array_equal(copy.center, normalizer.center)
    np.testing.assert_array_equal(copy.scale, normalizer.scale)
    assert copy.center.dtype == copy.scale.dtype == np.float32
    assert copy.kind == "affine"


def test_json_of_checkpoints_without_a_kind_is_affine():
    normalizer = Normalizer.from_json('{"center": [1.0, -2.0], "scale": [0.5, 4.0]}')
    assert normalizer.kind == "affine"
    np.testing.assert_array_equal(normalizer.unnormalize(np.float32([[1, 1]])), [[1.5, 2.0]])


def test_quantile_normalizer_survives_json_bit_for_bit():
    columns = make_columns()
    normalizer = fit("quantile", *columns)
    assert json.loads(normalizer.to_json())["kind"] == "quantile"
    copy = Normalizer.from_json(normalizer.to_json())
    assert copy.kind == "quantile"
    values = 1.5 * np.concatenate(columns, axis=1)
    np.testing.assert_array_equal(copy.normalize(values), normalizer.normalize(values))
    np.testing.assert_array_equal(copy.unnormalize(values), normalizer.unnormalize(values))
    np.testing.assert_array_equal(copy.center, normalizer.center)
    np.testing.assert_array_equal(copy.scale, normalizer.scale)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"center": [0.0]}',
        '{"center": ["a"], "scale": [1.0]}',
        '{"center": [0.0, 1.0], "scale": [1.0]}',
        '{"center": [0.0], "scale": [0.0]}',
        '{"center": [0.0], "scale": [NaN]}',
        '{"center": [NaN], "scale": [1.0]}',
        '{"center": [1e300], "scale": [1.0]}',
        '{"center": ["0.0"], "scale": [1.0]}',
        '{"center": [true], "scale": [1.0]}',
        '{"center": [[0.0]], "scale": [[1.0]]}',
        '{"center": 0.0, "scale": 1.0}',
        '{"center": [0.0], "scale": [1.0], "knots": [[0.0, 1.0]]}',
        '{"kind": "affine", "knots": [[0.0, 1.0]]}',
        '{"kind": "affine"}',
        '{"kind": "limits", "center": [0.0], "scale": [1.0]}',
        '{"kind": null, "center": [0.0], "scale": [1.0]}',
        '{"kind": ["affine"], "center": [0.0], "scale": [1.0]}',
        '{"knots": [[0.0, 1.0]]}',
        '{"kind": "quantile", "center": [0.0], "scale": [1.0]}',
        '{"kind": "quantile", "knots": [[0.0, 1.0]], "levels": [[-1.0, 1.0]]}',
        '{"kind": "quantile", "knots": []}',
        '{"kind": "quantile", "knots": [[]]}',
        '{"kind": "quantile", "knots": [[0.0]]}',
        '{"kind": "quantile", "knots": [0.0, 1.0]}',
        '{"kind": "quantile", "knots": {"0": 1.0}}',
        '{"kind": "quantile", "knots": [[0.0, 1.0], [0.0]]}',
        '{"kind": "quantile", "knots": [[0.0, "1.0"]]}',
        '{"kind": "quantile", "knots": [[1.0, 0.0]]}',
        '{"kind": "quantile", "knots": [[0.0, 1.0, 0.5, 2.0]]}',
        '{"kind": "quantile", "knots": [[0.0, NaN]]}',
        '{"kind": "quantile", "knots": [[0.0, Infinity]]}',
        '{"kind": "quantile", "knots": [[0.0, 1e300]]}',
        '{"kind": "quantile", "knots": [[0.0, 1e-45, 1.0]]}',
    ],
)
def test_damaged_json_is_a_checkpoint_error(text):
    with pytest.raises(CheckpointError, match=r"^normalization\.json: expected [^\n]+$"):
        Normalizer.from_json(text)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected limits, gaussian or quantile, got 'ranks'"):
        fit("ranks", *make_columns())


def test_quantiles_of_evenly_spread_values_are_an_affine_map():
    values = np.stack([np.linspace(-3, 5, 1001), np.linspace(100, 101, 1001)], axis=1).astype(np.float32)
    normalized = fit("quantile", values).normalize(values)
    np.testing.assert_allclose(normalized[:, 0], (values[:, 0] - 1) / 4, atol=1e-6)
    np.testing.assert_allclose(normalized[:, 1], 2 * values[:, 1] - 201, atol=3e-5)  # float32 steps at 100


def test_quantiles_spread_skewed_values_evenly():
    values = np.random.default_rng(0).exponential(2.0, (50_000, 1)).astype(np.float32)
    normalizer = fit("quantile", values)
    # 2 * CDF - 1 of the exponential distribution, up to the sampling error of the distribution function.
    np.testing.assert_allclose(normalizer.normalize(values), 1 - 2 * np.exp(-values / 2.0), atol=0.02)
    counts = np.histogram(normalizer.normalize(values), bins=10, range=(-1, 1))[0]
    np.testing.assert_allclose(counts, 5000, rtol=0.02)
    assert counts.sum() == 50_000
    assert np.histogram(fit("limits", values).normalize(values), bins=10, range=(-1, 1))[0].max() > 15_000


def test_quantile_maps_take_merged_statistics():
    values = np.random.default_rng(0).gamma(2.0, 3.0, (40_000, 2)).astype(np.float32)
    parts = [compute_statistics(part) for part in np.split(values, [7_000, 9_000])]
    merged = Normalizer.fit([merge_statistics(parts)], "quantile")
    np.testing.assert_allclose(merged.normalize(values), fit("quantile", values).normalize(values), atol=0.02)
    normalized = merged.normalize(values)
    np.testing.assert_array_equal([normalized.min(axis=0), normalized.max(axis=0)], [[-1, -1], [1, 1]])


def test_quantile_maps_go_on_linearly_beyond_the_data():
    values = np.random.default_rng(0).exponential(1.0, (1000, 1)) * 4 + 2
    normalizer = fit("quantile", values)
    low, high = values.min(), values.max()
    beyond = np.array([[low - (high - low)], [high + 3 * (high - low)], [high + 1e4 * (high - low)]])
    normalized = normalizer.normalize(beyond)
    np.testing.assert_allclose(normalized, [[-3.0], [7.0], [20001.0]], rtol=1e-6)
    np.testing.assert_allclose(normalizer.unnormalize(normalized), beyond, rtol=1e-5)


def test_atom_takes_the_middle_of_its_probability():
    # A quarter of the values below, half at 3, a quarter above.
    values = np.concatenate([np.linspace(0, 2, 1000), np.full(2000, 3.0), np.linspace(4, 6, 1000)])[:, None]
    normalizer = fit("quantile", values)
    points = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    levels = [[-1.0], [-0.75], [-0.5], [0.0], [0.5], [0.75], [1.0]]
    np.testing.assert_allclose(normalizer.normalize(points), levels, atol=0.01)
    np.testing.assert_array_equal(normalizer.normalize(np.array([[0.0], [3.0], [6.0]])), [[-1], [0], [1]])
    np.testing.assert_array_equal(normalizer.unnormalize(np.array([[-1.0], [0.0], [1.0]])), [[0], [3], [6]])


def test_atoms_at_the_ends_stay_at_the_ends():
    # Half of the values at the minimum, three tenths at the maximum.
    values = np.concatenate([np.zeros(5000), np.linspace(1, 2, 2000), np.full(3000, 5.0)])[:, None]
    normalizer = fit("quantile", values)
    points = np.array([[-5.0], [0.0], [1.0], [1.5], [2.0], [5.0], [7.5]])
    levels = normalizer.normalize(points)
    np.testing.assert_allclose(levels, [[-3], [-1], [0.0], [0.2], [0.4], [1], [2]], atol=0.01)
    np.testing.assert_array_equal(levels[[1, 5]], [[-1], [1]])
    np.testing.assert_allclose(normalizer.unnormalize(levels), points, atol=1e-5)


def test_entry_of_two_values_is_mapped_to_the_ends():
    values = np.repeat([[0.25], [4.25]], [900, 100], axis=0)
    normalizer = fit("quantile", values)
    np.testing.assert_array_equal(normalizer.normalize(np.array([[0.25], [2.25], [4.25]])), [[-1], [0], [1]])


def test_constant_entries_do_not_change_the_others():
    column = np.random.default_rng(0).normal(0, 3, (500, 1)).astype(np.float32)
    alone = fit("quantile", column)
    wide = fit("quantile", np.hstack([np.full_like(column, 7.5), column, np.zeros_like(column)]))
    values = np.linspace(-20, 20, 301, dtype=np.float32)[:, None]
    normalized = wide.normalize(np.hstack([np.full_like(values, 7.5), values, np.zeros_like(values)]))
    np.testing.assert_array_equal(normalized, np.hstack([0 * values, alone.normalize(values), 0 * values]))
    back = wide.unnormalize(np.hstack([0 * values, values, 0 * values]))
    np.testing.assert_array_equal(back, np.hstack([0 * values + 7.5, alone.unnormalize(values), 0 * values]))
    np.testing.assert_array_equal(wide.normalize(np.array([[8.0, 0.0, -0.5]]))[0, [0, 2]], [0.5, -0.5])


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_quantile_maps_keep_any_leading_shape(shape):
    columns = make_columns()
    normalizer = fit("quantile", *columns)
    values = np.random.default_rng(1).uniform(-1, 9, shape)
    rows = [normalizer.normalize(row[None])[0] for row in values.reshape(-1, 4)]
    for given_values in (values, torch.from_numpy(values)):
        normalized = normalizer.normalize(given_values)
        assert (type(normalized), normalized.dtype) == (type(given_values), given_values.dtype)
        assert tuple(normalized.shape) == shape
        np.testing.assert_allclose(np.asarray(normalized).reshape(-1, 4), np.array(rows).reshape(-1, 4), rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (3, 5), (2, 8), (4, 1)])
def test_quantile_maps_refuse_another_number_of_entries(shape):
    normalizer = fit("quantile", *make_columns())
    for call in (normalizer.normalize, normalizer.unnormalize):
        for values in (np.zeros(shape), torch.zeros(shape)):
            with pytest.raises(ValueError, match="expected 4 entries in the last dimension, got shape"):
                call(values)


def test_half_precision_is_computed_in_float32():
    normalizer = fit("quantile", *make_columns())
    values = torch.rand(50, 4).half()
    normalized = normalizer.normalize(values)
    assert normalized.dtype == torch.float32
    assert torch.equal(normalized, normalizer.normalize(values.float()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["limits", "quantile"])
def test_tensors_stay_on_their_device(kind):
    normalizer = fit(kind, *make_columns())
    values = torch.rand(50, 4) * 12 - 2
    for call in (normalizer.normalize, normalizer.unnormalize):
        result = call(values.cuda())
        assert result.is_cuda
        torch.testing.assert_close(result.cpu(), call(values), rtol=1e-6, atol=1e-6)


@st.composite
def columns_with_atoms(draw, atoms=(-3.0, -1e-9, 0.0, 0.5, 40.0)):
    """Columns of float32 values: mixtures of continuous parts, atoms and a heavy tail, at any offset and size."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    entries = []
    for _ in range(draw(st.integers(1, 3))):
        rows = 600
        continuous = draw(st.sampled_from(["normal", "exponential", "cauchy", "integers", "none"]))
        values = {
            "normal": generator.normal(size=rows),
            "exponential": generator.exponential(size=rows),
            "cauchy": generator.standard_cauchy(size=rows),
            "integers": generator.integers(0, 9, rows).astype(float),
            "none": np.zeros(rows),
        }[continuous]
        for atom in draw(st.lists(st.sampled_from(atoms), max_size=3)):
            values[generator.random(rows) < generator.uniform(0.01, 0.6)] = atom
        size, offset = draw(st.sampled_from([1e-2, 1.0, 1e3])), draw(st.sampled_from([0.0, 10.0, -1.0]))
        entries.append(size * (values + offset))
    return np.stack(entries, axis=1).astype(np.float32)


def tolerances(normalizer, values):
    """What float32 lets a round trip lose: its steps at the value, and its steps at 1 over the steepest segment."""
    return 4e-7 * np.abs(values) + 3e-5 * normalizer.scale


@given(column=columns_with_atoms(), seed=st.integers(0, 2**31))
def test_round_trips_through_quantile_maps(column, seed):
    normalizer = fit("quantile", column)
    normalized = normalizer.normalize(column)
    assert normalized.dtype == np.float32
    assert (np.abs(normalized) <= 1 + 1e-6).all()
    error = np.abs(normalizer.unnormalize(normalized) - column)
    assert (error <= tolerances(normalizer, column)).all()
    # The other way, in float64, where steep segments lose nothing of the level.
    levels = np.random.default_rng(seed).uniform(-2.5, 2.5, column.shape)
    back = normalizer.normalize(normalizer.unnormalize(levels))
    np.testing.assert_allclose(back, levels, atol=2e-6)


@given(column=columns_with_atoms())
def test_quantile_maps_increase_strictly(column):
    normalizer = fit("quantile", column)
    low, high = column.min(axis=0).astype(float), column.max(axis=0).astype(float)
    margin = 0.3 * np.maximum(high - low, 1.0)
    values = np.linspace(low - margin, high + margin, 2001)
    assert (np.diff(normalizer.normalize(values), axis=0) > 0).all()
    levels = np.linspace(np.full_like(low, -1.5), np.full_like(low, 1.5), 2001)
    assert (np.diff(normalizer.unnormalize(levels), axis=0) > 0).all()
    changing = high > low
    normalized = normalizer.normalize(column)
    for extreme, level in ((normalized.min(axis=0), -1), (normalized.max(axis=0), 1)):
        np.testing.assert_allclose(extreme[changing], level, atol=1e-6)
        np.testing.assert_allclose(extreme[~changing], 0, atol=1e-5)


@given(column=columns_with_atoms(atoms=(-3.0, 0.0, 0.5, 40.0)))
def test_levels_interpolate_the_middles_of_repeated_quantiles(column):
    normalized = fit("quantile", column).normalize(column)
    compared = 0
    for d in range(column.shape[1]):
        table = compute_statistics(column[:, d]).quantiles[:, 0].astype(np.float32)
        knots = np.array(sorted(set(table.tolist())))
        positions = [np.flatnonzero(table == np.float32(knot)).mean() for knot in knots]
        levels = 2 * np.array(positions) / (NUM_QUANTILES - 1) - 1
        levels[0], levels[-1] = -1, 1
        # Entries with knots that lie close together are left out: those are merged.
        if len(knots) > 1 and (np.diff(knots) > 2e-6 * np.abs(knots).max() + 2e-9 * np.ptp(knots)).all():
            compared += 1
            steepest = (np.diff(levels) / np.diff(knots)).max()
            atol = 2e-6 + 2e-7 * np.abs(knots).max() * steepest  # the float32 steps of values and knots
            np.testing.assert_allclose(normalized[:, d], np.interp(column[:, d], knots, levels), atol=atol)
    assume(compared)


def test_knots_that_float32_hardly_tells_apart_are_merged():
    # Between 0 and 1e-42 float32 has no finite slope.
    column = np.repeat(np.float32([[0.0], [1e-42], [1.0]]), [300, 300, 400], axis=0)
    leaf = torch.from_numpy(column).requires_grad_(True)
    normalizer = fit("quantile", column)
    normalized = normalizer.normalize(leaf)
    np.testing.assert_allclose(normalized.detach().numpy(), np.repeat([[-1], [1]], [600, 400], axis=0), atol=1e-6)
    (gradient,) = torch.autograd.grad(normalized.sum(), leaf)
    np.testing.assert_allclose(gradient.numpy(), 2, rtol=1e-5)
    assert Normalizer.from_json(normalizer.to_json()).kind == "quantile"


def test_values_a_float32_step_apart_share_a_level():
    pair = [1000.0, np.nextafter(np.float32(1000), np.float32(2000))]
    column = np.repeat(np.float32([0, *pair, 2000])[:, None], 300, axis=0)
    levels = fit("quantile", column).normalize(column[[0, 300, 600, 900]])
    np.testing.assert_allclose(levels, [[-1], [0], [0], [1]], atol=0.01)


def test_largest_value_ends_the_range_where_it_is_merged():
    column = np.linspace(1000, 1000.01, 5000, dtype=np.float32)[:, None]  # about 160 steps of float32
    np.testing.assert_array_equal(fit("quantile", column).normalize(column[[0, -1]]), [[-1], [1]])


@pytest.mark.parametrize("factor", [1 - 1e-3, 1 + 1e-3])
def test_ends_are_the_extremes_where_merged_quantiles_miss_them(factor):
    column = np.random.default_rng(0).integers(-5, 6, (3000, 1)).astype(float)
    statistics = compute_statistics(column)
    normalizer = Normalizer.fit([replace(statistics, quantiles=factor * statistics.quantiles)], "quantile")
    np.testing.assert_allclose(normalizer.normalize(np.array([[-5.0], [5.0], [15.0]])), [[-1], [1], [3]], atol=1e-6)
    assert Normalizer.from_json(normalizer.to_json()).kind == "quantile"


@given(column=columns_with_atoms(), seed=st.integers(0, 2**31))
def test_quantile_maps_of_tensors_equal_those_of_arrays(column, seed):
    normalizer = fit("quantile", column)
    levels = np.random.default_rng(seed).uniform(-2, 2, column.shape).astype(np.float32)
    for call, values in ((normalizer.normalize, column), (normalizer.unnormalize, levels)):
        tensor = call(torch.from_numpy(values))
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor.numpy(), call(values), rtol=1e-6, atol=1e-6 * np.abs(call(values)).max())


@given(column=columns_with_atoms(), seed=st.integers(0, 2**31))
def test_gradients_are_the_local_slopes(column, seed):
    normalizer = fit("quantile", column)
    levels = np.random.default_rng(seed).uniform(-1.5, 1.5, (40, column.shape[1]))
    step = 1e-6
    distance = np.abs(levels * (NUM_QUANTILES - 1) - np.round(levels * (NUM_QUANTILES - 1)))
    levels = np.where(distance < 1e-3, levels + 1e-4, levels)  # off the knots, whose levels are on this grid
    leaf = torch.from_numpy(levels).requires_grad_(True)
    values = normalizer.unnormalize(leaf)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    slopes = (normalizer.unnormalize(levels + step) - normalizer.unnormalize(levels - step)) / (2 * step)
    assert (slopes > 0).all()
    np.testing.assert_allclose(gradient.numpy(), slopes, rtol=1e-4)
    leaf = values.detach().requires_grad_(True)
    (inverse_gradient,) = torch.autograd.grad(normalizer.normalize(leaf).sum(), leaf)
    np.testing.assert_allclose(inverse_gradient.numpy(), 1 / slopes, rtol=1e-4)


def test_gradient_belongs_to_its_own_entry():
    normalizer = fit("quantile", *make_columns())
    leaf = torch.rand(6, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalizer.unnormalize(leaf)[2, 1], leaf)
    assert gradient[2, 1] > 0
    assert torch.count_nonzero(gradient) == 1
