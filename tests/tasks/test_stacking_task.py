"""The stacking task: scripted placements as behavior and policy, metrics, protocols."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffplan.behaviors.collection import UnitCollector
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.tasks.contracts import FinishedEpisodes
from diffplan.tasks.registry import task_of
from diffplan.tasks.stacking.columns import find_space, is_fine, read_pairs
from diffplan.tasks.stacking.metrics import measure
from diffplan.tasks.stacking.script import (
    Placement,
    draw_next,
    find_angles,
    find_next,
    find_next_of_tower,
    list_actions,
    list_moves,
)
from diffplan_envs.arm import BLOCK_SIZE, find_cup
from diffplan_envs.stacking_rules import draw_pairs, draw_piles, list_pairs, place_piles, read_piles
from diffplan_envs.stacking_scene import HOME

WHOLE, FINE = "diffplan/StackRearrange-v1", "diffplan/StackRearrange-Fine-v1"


def make_observation(poses: np.ndarray) -> np.ndarray:
    return np.r_[HOME, np.concatenate([poses, np.zeros((len(poses), 1))], axis=1).ravel()]


@pytest.mark.parametrize("space", ["joints", "cup"])
@pytest.mark.parametrize("protocol", ["unconditional", "conditional", "rearrangement"])
def test_the_script_does_all_that_is_asked_and_the_demonstrator_does_not(protocol: str, space: str) -> None:
    env = apply_protocol(protocol, EnvConfig(env_id=WHOLE, env_kwargs={"space": space}))
    policies = task_of(env).policies
    script, demonstrator = (
        evaluate_episodes(policies[name], env, list(range(12)), seed=3)[0] for name in ("script", "demonstrator")
    )
    assert [result.score for result in script] == pytest.approx([100] * 12)
    assert all(result.success for result in script)
    assert {(result.metrics["paper_score"], result.metrics["all_stacked"]) for result in script} == {(100, 1)}
    assert np.mean([result.score for result in demonstrator]) < 70


@pytest.mark.parametrize("space", ["joints", "cup"])
def test_the_script_works_in_steps_of_equal_length(space: str) -> None:
    env = apply_protocol("conditional", EnvConfig(env_id=FINE, env_kwargs={"num_blocks": 3, "space": space}))
    results, _ = evaluate_episodes(task_of(env).policies["script"], env, [0, 1], seed=1)
    assert [result.score for result in results] == pytest.approx([100, 100])


@pytest.mark.parametrize("num_blocks", [2, 6])
def test_the_script_builds_towers_of_any_number_of_blocks(num_blocks: int) -> None:
    env = apply_protocol("unconditional", EnvConfig(env_id=WHOLE, env_kwargs={"num_blocks": num_blocks}))
    results, _ = evaluate_episodes(task_of(env).policies["script"], env, [0, 1, 2], seed=1)
    assert [result.metrics["tower"] for result in results] == [num_blocks] * 3


@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_the_next_placement_can_be_made_and_leads_to_the_pairs(num_blocks: int, on_pile: float, seed: int) -> None:
    """Blocks are moved in thought: each placement takes the top of a pile, and all pairs are stacked in the end."""
    generator = np.random.default_rng(seed)
    piles = draw_piles(generator, num_blocks, on_pile)
    pairs = draw_pairs(generator, "rearrange", piles)
    for find in (lambda positions: find_next(positions, pairs), find_next_of_tower):
        now = [list(pile) for pile in piles]
        for _ in range(2 * num_blocks):
            placement = find(place_piles(generator, now)[:, :3])
            if placement is None:
                break
            source = next(pile for pile in now if pile[-1] == placement.block)
            source.pop()
            if placement.support is None:
                now.append([placement.block])
            else:
                next(pile for pile in now if pile and pile[-1] == placement.support).append(placement.block)
            now = [pile for pile in now if pile]
        else:
            raise AssertionError("it never ends")
        if find is find_next_of_tower:
            assert len(now) == 1
        else:
            assert {(int(a), int(b)) for a, b in pairs} <= set(list_pairs(now))


@given(st.integers(0, 10**6))
def test_the_demonstrator_takes_blocks_with_nothing_on_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positions = place_piles(generator, draw_piles(generator, 4, 0.6))[:, :3]
    placement = draw_next(positions, generator)
    tops = {pile[-1] for pile in read_piles(positions)}
    assert placement.block in tops
    assert placement.support is None or placement.support in tops - {placement.block}


def test_the_cup_goes_over_the_block_and_over_its_place() -> None:
    poses = place_piles(np.random.default_rng(0), [[0, 1], [2], [3]])
    target = Placement(1, 2).find_target(poses[:, :3], np.random.default_rng(0))
    np.testing.assert_allclose(target, poses[2, :3] + [0, 0, BLOCK_SIZE])
    moves = list_moves(poses[:, :3], 1, target, noise=np.array([[0.01, 0], [0, -0.01]]))
    cups = moves.cups
    top = poses[1, :3] + [0.01, 0, BLOCK_SIZE / 2]
    np.testing.assert_allclose(cups[[1, 2]], [top, top], atol=1e-4)
    np.testing.assert_allclose(cups[5, :2], target[:2] + np.array([0.01, -0.01]), atol=1e-4)
    assert cups[[0, 3, 4, 7], 2].min() > target[2] + 1.5 * BLOCK_SIZE
    assert moves.held.tolist() == [[0, float(2 <= number <= 5), 0, 0] for number in range(8)]
    joints, cup = (find_space(EnvConfig(env_id=WHOLE, env_kwargs={"space": name})) for name in ("joints", "cup"))
    actions = list_actions(moves, make_observation(poses), joints, is_fine=False)
    np.testing.assert_allclose(find_cup(actions[:, :7]), cups, atol=1e-5)
    seen = cup.observe(HOME, poses, np.zeros(4, dtype=bool))
    np.testing.assert_allclose(list_actions(moves, seen, cup, is_fine=False)[:, :3], cups, atol=1e-6)
    fine = list_actions(moves, make_observation(poses), joints, is_fine=True)
    assert len(fine) > 40
    assert abs(np.diff(fine[:, :7], axis=0)).max() < 0.35
    np.testing.assert_allclose(fine[-1], actions[-1], atol=1e-5)


@pytest.mark.parametrize("angle", [-6.2, -3.1, 0.0, 3.1, 6.2])
def test_the_arm_turns_the_shorter_way_but_never_more_than_once(angle: float) -> None:
    positions = place_piles(np.random.default_rng(1), [[0], [1], [2], [3]])[:, :3]
    for block in range(4):
        moves = list_moves(positions, block, positions[(block + 1) % 4])
        turns = np.array([angle, *find_angles(moves, angle)[:, 0]])
        assert abs(turns).max() <= 2 * np.pi + 1e-6
        short = abs(np.diff(turns)) <= np.pi + 1e-6
        assert (short | (abs(turns[1:] + 2 * np.pi * np.sign(turns[:-1])) > 2 * np.pi - np.pi)).all()


@pytest.mark.parametrize(("env_id", "space"), [(WHOLE, "joints"), (WHOLE, "cup"), (FINE, "joints")])
def test_demonstrations_are_the_same_in_every_batch(env_id: str, space: str) -> None:
    env = EnvConfig(env_id=env_id, env_kwargs={"on_pile": 0.3, "space": space})
    limit = 20 if env_id == WHOLE else 60
    collection = CollectionConfig(
        behavior="demonstrator", num_steps=limit * 4, episode_steps=limit, episodes_per_unit=4
    )
    together = UnitCollector(env, collection).collect(0)
    held = find_space(env).read_held(np.stack([episode.observations for episode in together]))
    assert held.any()
    assert held.sum(axis=-1).max() == 1
    for episode in together[:2]:
        single = gymnasium.make(env_id, on_pile=0.3, space=space, max_episode_steps=limit)
        observation, _ = single.reset(seed=episode.seed)
        for step, action in enumerate(episode.actions):
            np.testing.assert_array_equal(observation.astype(np.float32), episode.observations[step])
            observation, reward, *_ = single.step(action)
            assert np.float32(reward) == episode.rewards[step]
        single.close()


def finish(start: np.ndarray, end: np.ndarray, goals: np.ndarray | None) -> dict[str, float]:
    """The metrics of an episode of one step."""
    steps = SimpleNamespace(lengths=np.array([1]), observations=np.stack([start, end])[:, None])
    found = measure(FinishedEpisodes(EnvConfig(env_id=WHOLE), steps, start[None], goals, np.zeros(1)))
    return {name: float(values[0]) for name, values in found.items()}


def test_metrics_of_known_ends() -> None:
    start = make_observation(place_piles(np.random.default_rng(0), [[0], [1], [2], [3]]))
    poses = place_piles(np.random.default_rng(0), [[0, 1, 2], [3]])
    end = make_observation(poses)
    assert finish(start, end, None) == {"paper_score": pytest.approx(200 / 3), "tower": 3, "all_stacked": 0}
    goal = np.array([[1, 0, 2, 1, -1, -1]])
    assert finish(start, end, goal) == {"paper_score": 100, "tower": 3, "all_stacked": 1}
    assert finish(start, end, np.array([[3, 2, 1, 0, -1, -1]]))["paper_score"] == 50
    aside = poses.copy()
    aside[2, 0] += 0.1  # on the pile by the rule of the paper alone
    assert finish(start, make_observation(aside), goal) == {"paper_score": 100, "tower": 2, "all_stacked": 0}
    held = end.copy()
    held[7 + 8 * 2 + 7] = 1
    assert finish(start, held, goal) == {"paper_score": 0, "tower": 3, "all_stacked": 0}


def test_columns_are_read() -> None:
    joints = find_space(EnvConfig(env_id=WHOLE))
    assert joints.read_blocks(np.arange(39.0))[1].tolist() == [15, 16, 17]
    assert joints.read_held(np.zeros((2, 39))).shape == (2, 4)
    cup = find_space(EnvConfig(env_id=WHOLE, env_kwargs={"space": "cup", "num_blocks": 2}))
    assert cup.read_blocks(np.arange(11.0))[1].tolist() == [7, 8, 9]
    assert (is_fine(EnvConfig(env_id=WHOLE)), is_fine(EnvConfig(env_id=FINE))) == (False, True)
    assert read_pairs(np.array([2.0, 1, -1, -1])).tolist() == [[2, 1]]
    assert read_pairs(None).shape == (0, 2)


@pytest.mark.parametrize("space_name", ["joints", "cup"])
@pytest.mark.parametrize("env_id", [WHOLE, FINE])
def test_a_block_out_of_reach_stops_nobody(env_id: str, space_name: str) -> None:
    """The demonstrator draws it now and then; the script is asked for it."""
    env = EnvConfig(env_id=env_id, env_kwargs={"space": space_name, "num_blocks": 2})
    space = find_space(env)
    observation = np.zeros(space.observation_size)
    observation[: space.num_arm] = HOME if space_name == "joints" else find_cup(HOME)
    observation[list(space.block_columns)] = [0.6, 0, 0.05, 1.9, 1.2, 0.05]
    if space_name == "joints":
        observation[[10, 18]] = 1.0
    for name in ("demonstrator", "script"):
        made = gymnasium.make_vec(env_id, num_envs=1, vectorization_mode="vector_entry_point", **env.env_kwargs)
        observations, _ = made.reset(seed=0, options={"observation": observation[None], "pairs": [[[1, 0]]]})
        policy = task_of(env).policies[name](SimpleNamespace(env=env, seeds=[0]))
        policy.reset(observations, np.array([[1.0, 0.0]]))
        for _ in range(300 if env_id == FINE else 24):
            observations, *_ = made.step(policy.act(observations))
        assert np.isfinite(observations).all()
        made.close()


def test_short_steps_in_positions_of_the_cup_throw_nothing() -> None:
    """An arm that turned further and further once had to turn back at once, and threw what it held."""
    env = EnvConfig(env_id=FINE, env_kwargs={"space": "cup", "num_placements": 4})
    space = find_space(env)
    made = gymnasium.make_vec(FINE, num_envs=8, vectorization_mode="vector_entry_point", **env.env_kwargs)
    observations, _ = made.reset(seed=100)
    policy = task_of(env).policies["demonstrator"](SimpleNamespace(env=env, seeds=range(8)))
    policy.reset(observations, None)
    furthest, fastest = 0.0, 0.0
    for _ in range(280):
        before = space.read_arm(observations)
        observations, *_ = made.step(policy.act(observations))
        furthest = max(furthest, np.linalg.norm(space.read_blocks(observations), axis=2).max())
        fastest = max(fastest, np.abs(space.read_arm(observations) - before).max())
    assert furthest < 0.8
    assert fastest < 0.25
    made.close()
