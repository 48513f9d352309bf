"""Rewards for the goal at hand: those that the environment would have paid."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_episodes import make_episode, make_manifest

from diffplan.config.offline_rl import OfflineRLSettings
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.relabeling import (
    FixedGoal,
    HindsightGoals,
    RecordedRewards,
    Transitions,
    compute_sparse_rewards,
    load_transitions,
)
from diffplan.errors import DataError
from diffplan_envs.task import GOAL_RADIUS, Maze2DTask

COLUMNS = (0, 1)
LENGTHS = [[5, 7], [1, 6]]


@pytest.fixture
def dataset(tmp_path: Path) -> TrajectoryDataset:
    manifest = create_dataset(
        tmp_path / "dataset", replace(make_manifest(), action_low=[-1.0, -4.0], action_high=[1.0, 2.0])
    )
    for unit, lengths in enumerate(LENGTHS):
        write_unit(tmp_path / "dataset", manifest, unit, [make_episode(2 * unit + i, n) for i, n in enumerate(lengths)])
    return open_dataset(tmp_path / "dataset")


def make_transitions(num_episodes: int, length: int, seed: int) -> Transitions:
    generator = np.random.default_rng(seed)
    observations = generator.uniform(0, 4, (num_episodes, length + 1, 4)).astype(np.float32)
    actions = generator.uniform(-1, 1, (num_episodes * length, 2)).astype(np.float32)
    ends = np.arange(1, num_episodes + 1) * length - 1
    return Transitions(
        observations[:, :-1].reshape(-1, 4),
        actions,
        observations[:, 1:].reshape(-1, 4),
        np.repeat(ends, length),
    )


def make_hindsight(data: Transitions, current_share: float, future_share: float) -> HindsightGoals:
    return HindsightGoals(
        data, COLUMNS, GOAL_RADIUS, discount=0.8, current_share=current_share, future_share=future_share
    )


def test_every_step_is_a_transition_and_the_last_one_leads_to_the_final_observation(
    dataset: TrajectoryDataset,
) -> None:
    data = load_transitions(dataset)
    episodes = [make_episode(i, length) for i, length in enumerate(n for unit in LENGTHS for n in unit)]
    np.testing.assert_array_equal(data.observations, np.concatenate([e.observations[:-1] for e in episodes]))
    np.testing.assert_array_equal(data.next_observations, np.concatenate([e.observations[1:] for e in episodes]))
    assert data.last_steps.tolist() == [4] * 5 + [11] * 7 + [12] + [18] * 6
    taken = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(data.actions, (taken - [0, -1]) / [1, 3], atol=1e-6)  # -4 to 2 becomes -1 to 1


@pytest.mark.parametrize("normalize", [False, True])
def test_recorded_rewards_and_terminations_are_those_of_the_data(tmp_path: Path, normalize: bool) -> None:
    root = tmp_path / "dataset"
    manifest = create_dataset(root, replace(make_manifest(), action_low=[-1.0, -4.0], action_high=[1.0, 2.0]))
    episodes = [make_episode(i, n, terminated=i == 1, truncated=i != 1) for i, n in enumerate((5, 7, 3))]
    write_unit(root, manifest, 0, episodes)
    dataset = open_dataset(root)
    data = load_transitions(dataset)
    batch = RecordedRewards(data, dataset, normalize=normalize).sample(400, np.random.default_rng(0))
    returns = [float(e.rewards.sum(dtype=np.float64)) for e in episodes]
    scale = 1000 / (max(returns) - min(returns)) if normalize else 1.0
    rewards = np.concatenate([e.rewards for e in episodes]) * scale
    rows = [int(np.flatnonzero((data.observations == o).all(axis=1))[0]) for o in batch.observations]
    assert set(rows) == set(range(15))
    np.testing.assert_allclose(batch.rewards, rewards[rows], rtol=1e-5)
    np.testing.assert_array_equal(batch.next_observations, data.next_observations[rows])
    assert batch.terminates.tolist() == [row == 11 for row in rows]  # the last step of the second episode


def test_rewards_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    manifest = create_dataset(root, replace(make_manifest(), action_low=[-1.0, -4.0], action_high=[1.0, 2.0]))
    write_unit(root, manifest, 0, [replace(make_episode(0, 5), rewards=np.ones(5, np.float32))])
    dataset = open_dataset(root)
    with pytest.raises(DataError, match="expected rewards to learn from, got 1 at every step"):
        RecordedRewards(load_transitions(dataset), dataset, normalize=False)


@given(seed=st.integers(0, 2**31), goal=st.tuples(st.floats(0, 4), st.floats(0, 4)))
def test_rewards_of_a_fixed_goal_are_those_of_the_environment(seed: int, goal: tuple[float, float]) -> None:
    data = make_transitions(4, 30, seed)
    task = Maze2DTask.make("umaze", "sparse", redraw_goal=False)
    expected, success = task.compute_reward(data.next_observations[:, :2], np.array(goal))
    if not success.any():
        with pytest.raises(DataError, match="expected steps of the data that end within"):
            FixedGoal(data, goal, COLUMNS, GOAL_RADIUS)
        return
    sampler = FixedGoal(data, goal, COLUMNS, GOAL_RADIUS)
    np.testing.assert_array_equal(sampler.rewards, expected)
    batch = sampler.sample(64, np.random.default_rng(seed))
    drawn, _ = task.compute_reward(batch.next_observations[:, :2], np.array(goal))
    np.testing.assert_array_equal(batch.rewards, drawn)
    assert batch.observations.shape == (64, 4)  # the goal is not told


@given(seed=st.integers(0, 2**31), shares=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.2, 0.5)]))
def test_rewards_of_drawn_goals_are_those_of_the_environment(seed: int, shares: tuple[float, float]) -> None:
    data = make_transitions(4, 30, seed)
    batch = make_hindsight(data, *shares).sample(256, np.random.default_rng(seed))
    goals = batch.observations[:, 4:]
    np.testing.assert_array_equal(goals, batch.next_observations[:, 4:])
    task = Maze2DTask.make("umaze", "sparse", redraw_goal=True)
    expected, _ = task.compute_reward(batch.next_observations[:, :2].astype(np.float64), goals)
    np.testing.assert_array_equal(batch.rewards, expected)
    if shares == (1.0, 0.0):
        assert (batch.rewards == 1).all()


@given(seed=st.integers(0, 2**31))
def test_later_goals_stay_in_the_episode(seed: int) -> None:
    data = make_transitions(5, 12, seed)
    generator = np.random.default_rng(seed)
    rows = generator.integers(60, size=500)
    goals = make_hindsight(data, 0.0, 1.0).draw_goal_steps(rows, generator)
    ends = data.last_steps[rows]
    assert (goals <= ends).all()
    assert (goals[rows < ends] > rows[rows < ends]).all()
    assert (goals[rows == ends] == rows[rows == ends]).all()  # where the episode itself ends


def test_goals_are_drawn_in_the_shares_asked_for() -> None:
    data = make_transitions(2, 10_000, 0)
    rows = np.full(40_000, 100)
    goals = make_hindsight(data, 0.25, 0.5).draw_goal_steps(rows, np.random.default_rng(0))
    assert (goals == 100).mean() == pytest.approx(0.25, abs=0.01)
    assert ((goals > 100) & (goals < 200)).mean() == pytest.approx(0.5, abs=0.01)
    assert (goals >= 10_000).mean() == pytest.approx(0.125, abs=0.01)  # half of what is drawn from all data
    later = goals[(goals > 100) & (goals < 200)] - 100
    assert later.mean() == pytest.approx(1 / (1 - 0.8), rel=0.03)


def test_the_radius_of_the_settings_is_that_of_the_environment() -> None:
    assert OfflineRLSettings().goal_radius == GOAL_RADIUS
    on_the_rim = np.array([[0.5, 0.0], [0.0, 0.5000001]])
    assert compute_sparse_rewards(on_the_rim, np.zeros(2), GOAL_RADIUS).tolist() == [1.0, 0.0]


def test_actions_without_bounds_are_refused(dataset_root: Path) -> None:
    with pytest.raises(DataError, match="expected bounds of all actions"):
        load_transitions(open_dataset(dataset_root))
