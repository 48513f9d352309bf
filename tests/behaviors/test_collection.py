import dataclasses

import gymnasium
import numpy as np
import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import ConfigError

ENV = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
WAYPOINT = CollectionConfig(behavior="waypoint")


def collect_all(collection, env=ENV):
    collector = UnitCollector(env, collection)
    return [episode for unit in range(collection.num_units) for episode in collector.collect(unit)]


def assert_equal_episodes(first, second):
    for one, two in zip(first, second, strict=True):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(two, field.name)
            if field.name == "columns":
                assert a.keys() == b.keys()
                for name in a:
                    np.testing.assert_array_equal(a[name], b[name])
            else:
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("behavior", ["waypoint", "noisy_waypoint", "random", "waypoint:0.5,random:0.5"])
def test_episode_does_not_depend_on_the_batch_it_is_collected_in(behavior):
    # 600 steps: more than one block of random draws.
    collection = CollectionConfig(behavior=behavior, num_steps=4200, episode_steps=600, episodes_per_unit=7, seed=3)
    whole = collect_all(collection)
    assert [episode.episode_index for episode in whole] == list(range(7))
    for episodes_per_unit in (1, 3):
        other = collect_all(dataclasses.replace(collection, episodes_per_unit=episodes_per_unit))
        assert [episode.episode_index for episode in other] == list(
            range(-(-7 // episodes_per_unit) * episodes_per_unit)
        )
        assert_equal_episodes(whole, other[:7])


def test_unit_does_not_depend_on_what_its_collector_did_before():
    collection = dataclasses.replace(WAYPOINT, num_steps=600, episode_steps=100, episodes_per_unit=2)
    collector = UnitCollector(ENV, collection)
    collector.collect(0)
    assert_equal_episodes(collector.collect(2), UnitCollector(ENV, collection).collect(2))


def test_seeds_and_starts_differ_between_episodes_and_between_dataset_seeds():
    collection = dataclasses.replace(WAYPOINT, num_steps=500, episode_steps=50, episodes_per_unit=5)
    episodes = collect_all(collection) + collect_all(dataclasses.replace(collection, seed=1))
    assert len({episode.seed for episode in episodes}) == 20
    assert len({tuple(episode.observations[0]) for episode in episodes}) == 20


def test_episode_is_what_a_single_environment_does_with_the_same_seed_and_actions():
    collection = dataclasses.replace(WAYPOINT, num_steps=300, episode_steps=100, episodes_per_unit=3)
    for episode in collect_all(collection):
        env = gymnasium.make(ENV.env_id, max_episode_steps=100)
        observation, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(episode.observations[0], observation.astype(np.float32))
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(episode.observations[t + 1], observation.astype(np.float32))
            assert episode.rewards[t] == reward
        assert (episode.terminated, episode.truncated) == (terminated, truncated) == (False, True)
        assert len(episode) == 100


def test_units_are_whole_and_do_not_depend_on_how_many_there_are():
    collection = CollectionConfig(num_steps=450, episode_steps=100, episodes_per_unit=2)  # rounded up to 6 episodes
    assert collection.num_units == 3
    collector = UnitCollector(ENV, collection)
    episodes = [collector.collect(unit) for unit in range(collection.num_units)]
    assert [[episode.episode_index for episode in unit] for unit in episodes] == [[0, 1], [2, 3], [4, 5]]
    longer = UnitCollector(ENV, dataclasses.replace(collection, num_steps=1600))
    assert_equal_episodes(longer.collect(2), episodes[2])


def test_goal_column_is_the_goal_pursued():
    (episode,) = collect_all(dataclasses.replace(WAYPOINT, num_steps=900, episode_steps=900, episodes_per_unit=1))
    goals = episode.columns["goal"]
    assert goals.shape == (900, 2)
    changes = np.flatnonzero((np.diff(goals, axis=0) != 0).any(axis=1)) + 1
    assert len(changes) >= 3
    # The row of a change holds the observation in which the previous goal was reached.
    distances = np.linalg.norm(episode.observations[changes, :2] - goals[changes - 1], axis=1)
    assert (distances < 0.1 + 1e-6).all()


class Countdown(gymnasium.Env):
    """Ends by itself after as many steps as its seed's first draw says; observations count the steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.now = int(self.np_random.integers(1, 9)), 0
        return np.zeros(1), {}

    def step(self, action):
        self.now += 1
        return np.array([float(self.now)]), 1.0, self.now == self.length, False, {}


@pytest.fixture
def countdown():
    gymnasium.register("diffplan-tests/Countdown-v0", entry_point=Countdown)
    yield EnvConfig(env_id="diffplan-tests/Countdown-v0")
    del gymnasium.registry["diffplan-tests/Countdown-v0"]


def test_episodes_that_end_early_are_cut_where_they_end(countdown):
    collection = CollectionConfig(behavior="random", num_steps=120, episode_steps=6, episodes_per_unit=20)
    episodes = collect_all(collection, countdown)
    for episode in episodes:
        expected = min(int(np.random.Generator(np.random.PCG64(episode.seed)).integers(1, 9)), 6)
        np.testing.assert_array_equal(episode.observations[:, 0], np.arange(expected + 1))
        assert len(episode.rewards) == len(episode.actions) == expected
    assert len({len(episode) for episode in episodes}) > 3
    assert any(e.truncated and not e.terminated for e in episodes)
    assert all(e.terminated for e in episodes if len(e) < 6)


def test_mixture_is_written_and_read_even_if_a_unit_has_no_goals(tmp_path):
    collection = CollectionConfig(
        behavior="waypoint:0.3,random:0.7", num_steps=600, episode_steps=50, episodes_per_unit=1
    )
    manifest = create_dataset(tmp_path, make_manifest(ENV, collection))
    collector = UnitCollector(ENV, collection)
    for unit in range(collection.num_units):
        write_unit(tmp_path, manifest, unit, collector.collect(unit))
    dataset = open_dataset(tmp_path)
    missing = [bool(np.isnan(dataset.column(shard, "goal")).all()) for shard in dataset.shards]
    assert any(missing)
    assert not all(missing)


def test_manifest_records_spaces_columns_and_configs():
    collection = CollectionConfig(behavior="noisy_waypoint", num_steps=100)
    manifest = make_manifest(ENV, collection)
    assert (manifest.observation_dim, manifest.action_dim) == (4, 2)
    assert (manifest.action_low, manifest.action_high) == ([-1.0, -1.0], [1.0, 1.0])
    assert [(c.name, c.size) for c in manifest.extra_columns] == [("goal", 2)]
    assert manifest.env["env_id"] == ENV.env_id
    assert manifest.collection["behavior"] == "noisy_waypoint"


def test_bad_behavior_is_refused_before_anything_is_collected():
    with pytest.raises(ConfigError, match=r"'wapoint'.*Did you mean 'waypoint'"):
        make_manifest(ENV, CollectionConfig(behavior="wapoint"))


def test_unknown_environment_is_a_config_error():
    with pytest.raises(ConfigError, match=r"env\.env_id 'diffplan/Maze3D-v1'"):
        make_manifest(EnvConfig(env_id="diffplan/Maze3D-v1"), CollectionConfig())
