"""Components of a mixture that take over from one another within an episode."""

import dataclasses

import numpy as np
import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.behaviors.mixture import MixtureBehavior
from diffplan.behaviors.registry import make_behavior
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext
from diffplan.tasks.maze2d.waypoint import WaypointBehavior
from diffplan_envs.maze import make_maze

MAZE = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
PENDULUM = EnvConfig(env_id="Pendulum-v1")


class Numbered:
    """Acts its number, and tells steps and generators in columns."""

    def __init__(self, number, column=None):
        self.number, self.column, self.taken = number, column, []

    def reset(self, observations, generators):
        self.generators, self.steps = generators, 0
        self.observations = observations

    def act(self, observations):
        assert len(observations) == len(self.generators)
        self.steps += 1
        self.draws = np.array([generator.random() for generator in self.generators])
        return np.full((len(observations), 1), self.number, dtype=np.float32)

    def columns(self):
        return {self.column: self.draws} if self.column else {}

    def take_over(self, observations, taken):
        self.taken.append((self.steps, taken.copy()))


def make_generators(num_envs):
    return [np.random.default_rng([5, i]) for i in range(num_envs)]


def run(weights, switch_steps, num_envs=200, steps=600, columns=None):
    components = [Numbered(i, column) for i, column in enumerate(columns or [None] * len(weights))]
    sizes = {column: 0 for column in columns or () if column}
    mixture = MixtureBehavior(components, weights, sizes, switch_steps)
    observations = np.zeros((num_envs, 2))
    mixture.reset(observations, make_generators(num_envs))
    actions, found = [], []
    for _ in range(steps):
        actions.append(mixture.act(observations)[:, 0])
        found.append(mixture.columns())
    return np.stack(actions), found, components


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.2, 0.5, 0.3], [0.8, 0.2]])
def test_components_change_as_often_as_asked_and_keep_their_shares(weights):
    actions, _, _ = run(weights, 10)
    changes = np.diff(actions, axis=0) != 0
    assert changes.mean() == pytest.approx(1 / 10, rel=0.05)
    shares = [(actions == i).mean() for i in range(len(weights))]
    np.testing.assert_allclose(shares, weights, atol=0.02)
    assert [(actions[-1] == i).mean() for i in range(len(weights))] == pytest.approx(weights, abs=0.1)
    assert not np.array_equal(changes[:, 0], changes[:, 1])  # each environment at its own times
    lengths = np.diff(np.flatnonzero(changes[:, 0]))
    assert lengths.std() > 4  # not every tenth step


def test_a_change_at_every_step_cannot_be_more_than_a_draw_at_every_step():
    actions, _, _ = run([0.5, 0.5], 1)
    assert (np.diff(actions, axis=0) != 0).mean() == pytest.approx(0.5, abs=0.01)


def test_the_first_component_is_the_one_of_an_episode_that_keeps_it():
    kept, _, _ = run([0.3, 0.7], None, steps=3)
    switched, _, _ = run([0.3, 0.7], 5, steps=3)
    np.testing.assert_array_equal(kept[0], kept[2])
    np.testing.assert_array_equal(switched[0], kept[0])


def test_without_switching_nothing_is_drawn_beyond_the_choice():
    """Content of datasets from before: components get the generators themselves, after one draw."""
    actions, found, _ = run([0.3, 0.7], None, num_envs=50, steps=2, columns=["a", "b"])
    for i, generator in enumerate(make_generators(50)):
        assert actions[0, i] == (generator.random() >= 0.3)
        draws = [generator.random() for _ in range(2)]
        assert [columns["ab"[int(actions[0, i])]][i] for columns in found] == draws


def test_columns_are_those_of_the_component_that_acts():
    actions, found, components = run([0.5, 0.3, 0.2], 4, num_envs=40, steps=100, columns=["a", "b", None])
    for step_actions, columns in zip(actions, found, strict=True):
        assert columns.keys() == {"a", "b"}
        for number, name in enumerate("ab"):
            np.testing.assert_array_equal(np.isnan(columns[name]), step_actions != number)
    for number, name in enumerate("ab"):
        acting = actions[-1] == number
        np.testing.assert_array_equal(found[-1][name][acting], components[number].draws[acting])
        assert components[number].steps == 100  # all of them count the steps of the episode


def test_what_takes_over_is_told_where():
    actions, _, components = run([0.5, 0.5], 10, num_envs=30, steps=60)
    for number, component in enumerate(components):
        expected = [
            (step, (actions[step] == number) & (actions[step - 1] != number))
            for step in range(1, 60)
            if ((actions[step] == number) & (actions[step - 1] != number)).any()
        ]
        assert [step for step, _ in component.taken] == [step for step, _ in expected]
        for (_, found), (_, wanted) in zip(component.taken, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_draws_of_components_do_not_depend_on_each_other():
    """Each has its own generators, so a component that draws nothing changes nothing for another."""

    class Silent(Numbered):
        def act(self, observations):
            self.draws = np.zeros(len(observations))
            return np.full((len(observations), 1), self.number, dtype=np.float32)

    found = []
    for second in (Numbered(1, "b"), Silent(1, "b")):
        mixture = MixtureBehavior([Numbered(0, "a"), second], [0.5, 0.5], {"a": 0, "b": 0}, 3)
        mixture.reset(np.zeros((9, 2)), make_generators(9))
        found.append([(mixture.act(np.zeros((9, 2))), mixture.columns()["a"]) for _ in range(30)])
    for (actions, draws), (other_actions, other_draws) in zip(*found, strict=True):
        np.testing.assert_array_equal(actions, other_actions)
        np.testing.assert_array_equal(draws, other_draws)


def collect(config, env=MAZE):
    collector = UnitCollector(env, config)
    return [episode for unit in range(config.num_units) for episode in collector.collect(unit)]


SWITCHED = CollectionConfig(
    behavior="waypoint:0.5,random:0.5", switch_steps=30, episode_steps=550, num_steps=2200, episodes_per_unit=4, seed=3
)


def test_switched_episodes_do_not_depend_on_the_batch():
    whole = collect(SWITCHED)
    for episodes_per_unit in (1, 3):
        parts = collect(dataclasses.replace(SWITCHED, episodes_per_unit=episodes_per_unit))
        for one, other in zip(whole, parts, strict=False):
            np.testing.assert_array_equal(one.actions, other.actions)
            np.testing.assert_array_equal(one.observations, other.observations)
            np.testing.assert_array_equal(one.columns["goal"], other.columns["goal"])
    assert len(whole) == 4
    assert {episode.behavior for episode in whole} == {SWITCHED.behavior}


def test_goals_are_those_of_the_waypoint_controller_while_it_acts():
    for episode in collect(dataclasses.replace(SWITCHED, num_steps=1100, episodes_per_unit=2)):
        missing = np.isnan(episode.columns["goal"]).all(axis=1)
        assert 0.1 < missing.mean() < 0.9
        assert np.diff(missing.astype(int)).any()
        np.testing.assert_array_equal(missing, np.isnan(episode.columns["goal"]).any(axis=1))


def test_a_controller_that_takes_over_finds_its_way_from_where_the_ball_is_now():
    """The way from where it acted last may lead through a wall."""
    maze = make_maze("umaze")
    controller = WaypointBehavior(maze)
    observations = np.tile([1.0, 1.0, 0.0, 0.0], (40, 1))
    controller.reset(observations, make_generators(40))
    controller.act(observations)
    before = controller.columns()["goal"]
    taken = np.arange(40) < 30
    observations[taken, :2] = [3.0, 1.0]  # the other end of the U
    controller.take_over(observations, taken)
    goals = controller.columns()["goal"]
    np.testing.assert_array_equal(goals[~taken], before[~taken])
    assert len({tuple(goal) for goal in goals[taken]}) == len(maze.free_cells)
    reached = np.zeros(40, dtype=bool)
    for _ in range(300):
        observations[:, :2] += 0.05 * controller.act(observations)
        cells = np.rint(observations[:, :2]).astype(int)
        assert not maze.walls[cells[:, 0], cells[:, 1]].any()
        reached |= np.linalg.norm(observations[:, :2] - goals, axis=1) < 0.15
    assert reached.all()


def test_one_behavior_cannot_be_switched():
    for behavior in ("waypoint", "random"):
        with pytest.raises(ConfigError, match=r"collection\.switch_steps: expected a mixture .*, got '") as caught:
            make_manifest(MAZE, CollectionConfig(behavior=behavior, switch_steps=10))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("switch_steps", [0, -1, 10**15])
def test_steps_of_a_switch_are_bounded(switch_steps):
    with pytest.raises(ConfigError, match=r"collection\.switch_steps"):
        CollectionConfig(switch_steps=switch_steps)


def test_time_of_a_policy_counts_steps_of_the_episode(tmp_path):
    """Also where another component acted in between."""
    np.savez(tmp_path / "clock.npz", w0=np.array([[0.0, 0, 0, 1]]), b0=np.zeros(1), act="relu", out="clip")
    np.savez(tmp_path / "other.npz", w0=np.zeros((1, 3)), b0=np.array([-1.0]), act="relu", out="clip")
    context = BehaviorContext(PENDULUM, np.array([-2.0]), np.array([2.0]), 0.0, 40, switch_steps=4)
    behavior = make_behavior(f"policy:{tmp_path}/clock.npz,policy:{tmp_path}/other.npz", context)
    observations = np.zeros((50, 3))
    behavior.reset(observations, make_generators(50))
    actions = np.stack([behavior.act(observations)[:, 0] for _ in range(40)])
    left = np.broadcast_to((1 - np.arange(40) / 40)[:, None], actions.shape)
    mine = actions != -1
    np.testing.assert_allclose(actions[mine], left[mine], rtol=1e-6)
    assert 0.4 < mine[20:].mean() < 0.6
