import dataclasses

import numpy as np
import pytest
import torch
from small_training import CONFIG, write_straight_paths

from diffplan.config import with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import DataError
from diffplan.training.batches import TrainingBatches

BOTH = with_overrides(CONFIG, {"windows.columns": "actions_observations"})


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "dataset"
    episodes = write_straight_paths(root)
    return open_dataset(root), episodes


def tensors(batch):
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [value for value in values if value is not None]


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_rank_sees_exactly_its_rows_of_the_global_batch(paths, world_size):
    whole = TrainingBatches(BOTH, paths[0])
    ranks = [TrainingBatches(BOTH, paths[0], rank=r, world_size=world_size) for r in range(world_size)]
    for step, pass_index in [(0, 0), (1, 0), (1, 1), (77, 0)]:
        expected = tensors(whole.make(step, pass_index))
        assert len(expected[0]) == 12
        for rank, batches in enumerate(ranks):
            for got, all_rows in zip(tensors(batches.make(step, pass_index)), expected, strict=True):
                assert torch.equal(got, all_rows[rank::world_size])


def test_batch_size_must_be_a_multiple_of_the_workers(paths):
    with pytest.raises(ValueError, match=r"training\.batch_size: expected a multiple of the 5 workers, got 12"):
        TrainingBatches(CONFIG, paths[0], rank=0, world_size=5)


def test_batch_is_a_function_of_seed_and_step(paths):
    used, fresh = TrainingBatches(CONFIG, paths[0]), TrainingBatches(CONFIG, paths[0])
    for step in (3, 0, 9):
        used.make(step)
    torch.manual_seed(1)
    np.random.seed(1)
    assert_same(used.make(5), fresh.make(5))


def test_batches_differ_between_steps_passes_and_seeds(paths):
    batches = TrainingBatches(CONFIG, paths[0])
    other_seed = TrainingBatches(with_overrides(CONFIG, {"training.seed": 1}), paths[0])
    made = [batches.make(0), batches.make(1), batches.make(0, 1), other_seed.make(0)]
    assert len({batch.noise.numpy().tobytes() for batch in made}) == 4
    assert len({batch.x_clean.numpy().tobytes() for batch in made}) == 4


def test_horizons_drawn_are_those_of_the_config(paths):
    batches = TrainingBatches(CONFIG, paths[0])
    drawn = [batches.make(step).x_clean.shape[1] for step in range(150)]
    assert set(drawn) == {4, 7, 10}
    assert min(drawn.count(horizon) for horizon in (4, 7, 10)) > 25
    longest = with_overrides(CONFIG, {"windows.max_horizon": 9})
    assert {TrainingBatches(longest, paths[0]).make(step).x_clean.shape[1] for step in range(40)} == {4, 7}


def test_diffusion_steps_cover_the_schedule_and_noise_is_standard_normal(paths):
    batches = [TrainingBatches(CONFIG, paths[0]).make(step) for step in range(60)]
    assert {int(s) for batch in batches for s in batch.diffusion_step} == set(range(8))
    noise = torch.cat([batch.noise.flatten() for batch in batches])
    assert noise.mean().abs() < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)


def test_rows_are_normalised_windows_of_episodes(paths):
    dataset, episodes = paths
    batches = TrainingBatches(BOTH, dataset)
    slices = np.concatenate(
        [
            [np.concatenate([e.actions, e.observations[:-1]], axis=1)[s : s + 13 : 2] for s in range(30 - 12)]
            for e in episodes
        ]
    )  # every window of horizon 7
    batch = next(b for b in map(batches.make, range(50)) if b.x_clean.shape[1] == 7)
    windows = batches.normalizer.unnormalize(batch.x_clean).numpy()
    nearest = [np.abs(slices - window).max(axis=(1, 2)).min() for window in windows]
    assert max(nearest) < 1e-5
    assert batch.x_clean.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(("config", "transition_dim", "action_dim"), [(CONFIG, 4, 0), (BOTH, 6, 2)])
def test_columns_are_those_of_the_config(paths, config, transition_dim, action_dim):
    batches = TrainingBatches(config, paths[0])
    assert batches.make(0).x_clean.shape[2] == transition_dim
    assert (batches.layout.transition_dim, batches.layout.action_dim) == (transition_dim, action_dim)


def test_horizon_longer_than_every_episode_is_refused_at_once(paths):
    with pytest.raises(DataError, match="spans 31 steps, but the longest episode has 30"):
        TrainingBatches(with_overrides(CONFIG, {"windows.max_horizon": 16}), paths[0])
