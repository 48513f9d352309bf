import numpy as np
import pytest
import torch

from diffplan.data.normalization import Normalizer
from diffplan.data.statistics import compute_statistics
from diffplan.errors import CheckpointError


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


@pytest.mark.parametrize("kind", ["limits", "gaussian"])
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


@pytest.mark.parametrize("kind", ["limits", "gaussian"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.5])
def test_constant_entry_is_mapped_to_zero_and_back(kind, constant):
    column = np.stack([np.full(100, constant), np.linspace(-1, 2, 100)], axis=1).astype(np.float32)
    normalizer = fit(kind, column)
    normalized = normalizer.normalize(column)
    np.testing.assert_allclose(normalized[:, 0], 0, atol=1e-3 if abs(constant) > 100 else 1e-6)
    assert np.isfinite(normalized).all()
    np.testing.assert_array_equal(normalizer.unnormalize(np.zeros((3, 2), np.float32))[:, 0], np.float32(constant))


def test_normalizer_survives_json_bit_for_bit():
    normalizer = fit("limits", *make_columns())
    copy = Normalizer.from_json(normalizer.to_json())
    np.testing.assert_array_equal(copy.center, normalizer.center)
    np.testing.assert_array_equal(copy.scale, normalizer.scale)
    assert copy.center.dtype == copy.scale.dtype == np.float32


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
    ],
)
def test_damaged_json_is_a_checkpoint_error(text):
    with pytest.raises(CheckpointError, match=r"normalization\.json"):
        Normalizer.from_json(text)
