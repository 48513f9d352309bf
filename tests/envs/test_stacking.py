"""Block stacking: the arm, the rules, the physics, and batches against single environments."""

import itertools

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffplan_envs.arm import BLOCK_SIZE, find_cup, make_arm_model, solve_joints
from diffplan_envs.stacking import StackingVectorEnv
from diffplan_envs.stacking_rules import (
    count_moves,
    count_right,
    draw_pairs,
    draw_piles,
    find_on,
    list_pairs,
    measure_tower,
    place_piles,
    read_piles,
)
from diffplan_envs.stacking_scene import HOME, count_control_steps
from diffplan_envs.stacking_spaces import StackingSpace, wind

import mujoco  # isort: skip  (after the arm)


UP = np.array([0, 0, BLOCK_SIZE])


def list_placement(block: int, position: np.ndarray, target: np.ndarray, num_blocks: int) -> list[np.ndarray]:
    """The 8 moves that put a block, from its position, to a target."""
    top, end = position + UP / 2, target + 0.54 * UP
    above, high = [[*place[:2], max(position[2], target[2]) + 0.25] for place in (top, end)]
    ways = [(above, 0), (top, 0), (top, 1), (above, 1), (high, 1), (end, 1), (end, 0), (high, 0)]
    actions, angle = [], 0.0
    for place, held in ways:
        joints = solve_joints(np.array(place))
        joints[0] += 2 * np.pi * round((angle - joints[0]) / (2 * np.pi))
        angle = joints[0]
        switches = np.zeros(num_blocks)
        switches[block] = held
        actions.append(np.r_[joints, switches].astype(np.float32))
    return actions


def read_blocks(observation: np.ndarray) -> np.ndarray:
    return observation[7:].reshape(-1, 8)[:, :3]


@given(st.floats(-np.pi + 0.01, np.pi), st.floats(0.35, 0.72), st.floats(0.05, 0.55))
def test_inverse_kinematics_is_the_inverse_of_the_model(angle: float, radius: float, height: float) -> None:
    target = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
    joints = solve_joints(target)
    np.testing.assert_allclose(find_cup(joints), target, atol=1e-9)
    model = make_arm_model(2)
    data = mujoco.MjData(model)
    data.qpos[:7] = joints
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site("cup").xpos, target, atol=1e-9)
    np.testing.assert_allclose(data.site("cup").xmat.reshape(3, 3)[:, 2], [0, 0, -1], atol=1e-9)


def test_places_out_of_reach_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected points within reach of the arm, got \[2.0, 0.0, 0.0\]"):
        solve_joints(np.array([[0.5, 0, 0.3], [2.0, 0, 0]]))


def test_the_rules_at_their_limits() -> None:
    def is_on(aside: float, above: float, rule: str) -> bool:
        return bool(find_on(np.array([[aside, 0, above], [0, 0, 0]]), rule)[0, 1])

    for aside, above, strict, paper in (
        (0.049, 0.1, True, True),
        (0.051, 0.1, False, True),
        (0.0, 0.069, False, True),
        (0.0, 0.131, False, True),
        (0.0, 0.049, False, False),
        (0.201, 0.1, False, False),
        (0.0, -0.1, False, False),
    ):
        assert (is_on(aside, above, "strict"), is_on(aside, above, "paper")) == (strict, paper)


@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_placed_piles_are_read_back(num_blocks: int, on_pile: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    piles = draw_piles(generator, num_blocks, on_pile)
    positions = place_piles(generator, piles)[:, :3]
    assert sorted(read_piles(positions)) == sorted(piles)
    assert measure_tower(positions) == measure_tower(positions, "paper") == max(map(len, piles))
    pairs = np.array(list_pairs(piles), dtype=int).reshape(-1, 2)
    assert count_right(positions, pairs) == len(pairs) == find_on(positions).sum()
    assert count_moves(piles, pairs) == 0


@given(st.integers(2, 5), st.integers(0, 10**6))
def test_as_many_moves_are_counted_as_blocks_that_lie_wrong(num_blocks: int, seed: int) -> None:
    """Blocks side by side need a move for each pair; unstacking any arrangement needs one for each block on another."""
    generator = np.random.default_rng(seed)
    piles = draw_piles(generator, num_blocks, 0.5)
    flat = [[block] for block in range(num_blocks)]
    pairs = list_pairs(piles)
    assert count_moves(flat, np.array(pairs).reshape(-1, 2)) == len(pairs)
    wanted = draw_pairs(generator, "rearrange", piles) if num_blocks > 1 else np.zeros((0, 2))
    missing = len({(int(a), int(b)) for a, b in wanted} - set(pairs))
    assert 1 <= missing <= count_moves(piles, wanted) <= len(pairs) + len(wanted)


def test_pairs_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="expected pairs that can be stacked at once"):
        count_moves([[0], [1], [2]], np.array([[0, 1], [1, 0]]))


def test_moves_last_as_long_as_their_largest_change_needs() -> None:
    before = np.zeros((4, 7))
    after = np.zeros((4, 7))
    after[:, 0] = [0.1, 1.6, 50, 0.1]
    assert count_control_steps(before, after, np.array([False, False, False, True])).tolist() == [8, 12, 40, 4]


@pytest.mark.parametrize("num_blocks", [2, 4, 6])
def test_a_tower_of_all_blocks_is_built_and_paid(num_blocks: int) -> None:
    env = gymnasium.make("diffplan/StackConditional-v1", num_blocks=num_blocks)
    observation, infos = env.reset(seed=3)
    pairs = infos["goal"].reshape(-1, 2).astype(int)
    rewards, ends = [], []
    for top, bottom in pairs:
        blocks = read_blocks(observation)
        target = blocks[bottom] + UP
        for number, action in enumerate(list_placement(top, blocks[top], target, num_blocks)):
            observation, reward, terminated, truncated, infos = env.step(action)
            held = observation[7:].reshape(-1, 8)[:, 7]
            assert held[top] == (2 <= number <= 5)
            assert held.sum() == held[top]
            rewards.append(reward)
            ends.append(terminated)
            assert not truncated
    assert sum(rewards) == pytest.approx(1)
    assert [reward for reward in rewards if reward] == pytest.approx([1 / len(pairs)] * len(pairs))
    assert infos["success"]
    assert ends == [False] * (8 * len(pairs) - 1) + [True]
    tower = read_blocks(observation)[[pairs[0, 1], *pairs[:, 0]]]
    np.testing.assert_allclose(tower[:, 2], BLOCK_SIZE * (np.arange(num_blocks) + 0.5), atol=0.004)
    env.close()


def test_the_physics_are_as_they_were() -> None:
    """Golden: where blocks lie after one was put on another and a third was pushed away."""
    env = gymnasium.make("diffplan/StackRearrange-v1", num_placements=2)
    poses = np.array([[0.6, 0, 0.05], [0.6, 0, 0.15], [0, 0.6, 0.05], [0, -0.6, 0.05]])
    blocks = np.concatenate([poses, np.tile([1.0, 0, 0, 0], (4, 1)), np.zeros((4, 1))], axis=1)
    observation, _ = env.reset(seed=0, options={"observation": np.r_[HOME, blocks.ravel()]})
    for action in list_placement(1, poses[1], np.array([0.03, 0.62, 0.15]), 4):
        observation, *_ = env.step(action)
    for place in ([0.45, 0.0, 0.2], [0.45, 0.0, 0.02], [0.62, 0.0, 0.02]):
        observation, *_ = env.step(np.r_[solve_joints(np.array(place)), np.zeros(4)])
    np.testing.assert_allclose(read_blocks(observation), GOLDEN, atol=1e-3)
    env.close()


GOLDEN = [
    [0.76323956, -1.379791e-06, 0.070402557],
    [0.030034832, 0.61387335, 0.14951462],
    [5.587208e-05, 0.6000207, 0.04979558],
    [0.0, -0.6, 0.04989224],
]


def make_actions(num: int, num_blocks: int, seed: int) -> np.ndarray:
    """Moves over the blocks, some of which hold one."""
    generator = np.random.default_rng(seed)
    angles, radii = generator.uniform(-np.pi, np.pi, num), generator.uniform(0.4, 0.7, num)
    places = np.stack([radii * np.cos(angles), radii * np.sin(angles), generator.uniform(0.05, 0.4, num)], axis=1)
    return np.concatenate([solve_joints(places), generator.random((num, num_blocks))], axis=1)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("diffplan/StackUnconditional-v1", {}),
        ("diffplan/StackRearrange-v1", {"num_blocks": 5}),
        ("diffplan/StackConditional-Fine-v1", {}),
        ("diffplan/StackUnconditional-v1", {"space": "cup"}),
    ],
)
def test_a_batch_equals_single_environments_to_the_last_bit(env_id: str, kwargs: dict) -> None:
    batch = gymnasium.make_vec(env_id, num_envs=3, autoreset_mode="Disabled", **kwargs)
    singles = [gymnasium.make(env_id, **kwargs) for _ in range(3)]
    observations, infos = batch.reset(seed=[5, 6, 7])
    for i, single in enumerate(singles):
        observation, own = single.reset(seed=5 + i)
        np.testing.assert_array_equal(observation, observations[i])
        np.testing.assert_array_equal(own["goal"], infos["goal"][i])
    num_blocks, in_cup = kwargs.get("num_blocks", 4), "space" in kwargs
    space = StackingSpace("cup" if in_cup else "joints", num_blocks)
    for step in range(6):
        place = space.read_blocks(observations)[0, step % num_blocks] + 0.6 * UP
        actions = make_actions(3, num_blocks, step)
        if in_cup:
            actions = np.concatenate([find_cup(actions[:, :7]), actions[:, 7:]], axis=1)
        actions[0] = np.r_[place if in_cup else solve_joints(place), np.eye(num_blocks)[step % num_blocks]]
        observations, rewards, _, truncations, infos = batch.step(actions)
        for i, single in enumerate(singles):
            observation, reward, _, truncated, own = single.step(actions[i])
            np.testing.assert_array_equal(observation, observations[i])
            assert (reward, truncated, own["success"]) == (rewards[i], truncations[i], infos["success"][i])
    for env in (batch, *singles):
        env.close()


def test_any_state_can_be_set_also_with_a_block_in_the_air() -> None:
    """What happens next is then the same, but for velocities, which are 0."""
    env = gymnasium.make("diffplan/StackUnconditional-v1")
    observation, _ = env.reset(seed=1)
    blocks = read_blocks(observation)
    for action in list_placement(2, blocks[2], blocks[0] + UP, 4)[:4]:
        observation, *_ = env.step(action)
    assert observation[7:].reshape(-1, 8)[2, 7] == 1
    again, _ = env.reset(seed=99, options={"observation": observation})
    np.testing.assert_allclose(again, observation)
    for action in list_placement(2, blocks[2], blocks[0] + UP, 4)[4:]:
        observation, reward, *_ = env.step(action)
    assert reward == pytest.approx(0)
    assert measure_tower(read_blocks(observation)) == 2
    env.close()


def test_episodes_depend_on_their_seed_alone() -> None:
    first, second = (StackingVectorEnv(4, "rearrange") for _ in range(2))
    one, infos = first.reset(seed=10)
    second.reset(seed=[0, 1, 2, 3])
    second.step(make_actions(4, 4, 0))
    other, others = second.reset(seed=[10, 11, 12, 13])
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(infos["goal"], others["goal"])
    assert len({goal.tobytes() for goal in infos["goal"]}) > 1
    changed, _ = first.reset(seed=[0] * 4, options={"reset_mask": np.array([True, False, False, True])})
    np.testing.assert_array_equal((changed == one).all(axis=1), [False, True, True, False])


def test_there_is_time_for_one_placement_more_than_is_needed() -> None:
    env = StackingVectorEnv(1, "rearrange", autoreset_mode="Disabled")
    for seed in range(20):
        observations, infos = env.reset(seed=[seed])
        pairs = infos["goal"][0].reshape(-1, 2).astype(int)
        needed = count_moves(read_piles(read_blocks(observations[0])), pairs[pairs[:, 0] >= 0])
        steps = next(n for n in itertools.count(1) if env.step(np.r_[HOME, np.zeros(4)][None])[3][0])
        assert steps == 8 * (needed + 1)


def test_a_block_out_of_reach_of_the_cup_is_not_taken() -> None:
    env = StackingVectorEnv(1, autoreset_mode="Disabled")
    observations, _ = env.reset(seed=[0])
    block = read_blocks(observations[0])[1]
    for height, taken in ((1.1, False), (0.9, True)):
        joints = solve_joints(block + height * UP)
        env.step(np.r_[joints, np.zeros(4)][None])
        observations, *_ = env.step(np.r_[joints, [0, 1, 0, 0]][None])
        assert bool(observations[0, 7 + 8 + 7]) == taken
    observations, *_ = env.step(np.r_[solve_joints(block + 3 * UP), [1, 1, 0, 0]][None])
    assert observations[0, 7:].reshape(-1, 8)[:, 7].tolist() == [0, 1, 0, 0]
    assert read_blocks(observations[0])[1, 2] > 0.2


def test_the_place_of_the_cup_stands_for_the_angles() -> None:
    """The same episode told by places and by angles; the arm turns the shorter way by itself."""
    joints, cup = (StackingVectorEnv(1, space=space, autoreset_mode="Disabled") for space in ("joints", "cup"))
    seen, _ = joints.reset(seed=[4])
    other, _ = cup.reset(seed=[4])
    np.testing.assert_allclose(other[0, :3], find_cup(seen[0, :7]))
    block = read_blocks(seen[0])[2]
    for action in list_placement(2, block, np.array([-0.5, 0.3, 0.05]), 4):
        present = joints.scene.targets[0, 0]
        action[0] = wind(present, action[0])
        seen, *_ = joints.step(action[None])
        other, *_ = cup.step(np.r_[find_cup(action[:7].astype(np.float64)), action[7:]][None])
    np.testing.assert_allclose(StackingSpace("cup", 4).read_blocks(other), [read_blocks(seen[0])], atol=1e-5)
    again, _ = cup.reset(seed=[0], options={"observation": other})
    np.testing.assert_allclose(again, other, atol=1e-9)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_places_beyond_reach_become_the_nearest_within(x: float, y: float, z: float) -> None:
    space = StackingSpace("cup", 2)
    told = space.to_joints(np.array([[x, y, z, 1, 0]]), np.zeros((1, 7)), unwinds=True)
    assert told[0, 7:].tolist() == [1, 0]
    reached = find_cup(told[0, :7])
    inside = np.hypot(x, y) > 0.3 and max(abs(x), abs(y)) < 0.8 and 0 < z < 0.85
    if inside and np.linalg.norm([x, y, z - 0.16]) < 0.89:
        np.testing.assert_allclose(reached, [x, y, z], atol=1e-9)
    assert np.hypot(*reached[:2]) > 0.1


@given(st.floats(-6.28, 6.28), st.floats(-np.pi, np.pi))
def test_wound_angles_are_equal_and_near(present: float, angle: float) -> None:
    wound = float(wind(np.array(present), np.array(angle)))
    assert np.cos(wound - angle) == pytest.approx(1)
    assert abs(wound) <= 2 * np.pi + 1e-9
    assert abs(wound - present) <= np.pi + 1e-9 or abs(wound - present) >= np.pi


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs: expected at least 1"),
        ({"kind": "tower"}, "kind: expected one of"),
        ({"rule": "lax"}, "rule: expected one of"),
        ({"space": "tip"}, "space: expected one of"),
        ({"num_blocks": 7}, "num_blocks: expected 2 to 6, got 7"),
        ({"on_pile": 1.5}, "on_pile: expected a probability"),
        ({"move_steps": 0}, "move_steps: expected at least 1"),
        ({"num_placements": 0}, "num_placements: expected at least 1"),
        ({"render_mode": "human"}, "render_mode: a batch is not drawn"),
        ({"autoreset_mode": "SameStep"}, "expected NEXT_STEP or DISABLED"),
    ],
)
def test_wrong_arguments_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StackingVectorEnv(**{"num_envs": 1, **kwargs})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observations": np.zeros((1, 39))}, "expected reset_mask, observation and pairs"),
        ({"observation": np.zeros((1, 38))}, r"observation: expected finite numbers of shape \[1, 39\]"),
        ({"observation": np.full((1, 39), np.nan)}, "observation: expected finite numbers"),
        ({"pairs": [[[0, 4]]]}, "expected pairs \\(top, bottom\\) of blocks 0 to 3"),
        ({"pairs": [[[0, 1], [1, 0]]]}, "expected pairs that can be stacked at once"),
        ({"reset_mask": np.ones(2, dtype=bool)}, r"reset_mask: expected bool\[1\]"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StackingVectorEnv(1).reset(seed=0, options=options)


def test_it_draws_the_scene() -> None:
    env = gymnasium.make("diffplan/StackUnconditional-v1", render_mode="rgb_array", width=120, height=90)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (90, 120, 3)
    assert env.metadata["render_fps"] == 2
    assert gymnasium.make("diffplan/StackUnconditional-Fine-v1").metadata["render_fps"] == 20
    assert picture.dtype == np.uint8
    assert picture.std() > 20
    assert picture.mean() > 120  # the lights are on
    env.step(np.r_[solve_joints(np.array([-0.5, -0.3, 0.5])), np.zeros(4)])
    assert abs(env.render().astype(int) - picture).max() > 50
    env.close()


@pytest.mark.parametrize(("num_placements", "ends"), [(None, True), (3, False)])
def test_an_episode_ends_once_its_pairs_have_lasted(num_placements: int | None, ends: bool) -> None:
    """Two moves after the block was let go, unless all episodes have one length."""
    env = gymnasium.make("diffplan/StackRearrange-v1", num_placements=num_placements, on_pile=0.0)
    observation, _ = env.reset(seed=0, options={"pairs": np.array([[0, 1]])})
    blocks = read_blocks(observation)
    found = [env.step(action)[2:4] for action in list_placement(0, blocks[0], blocks[1] + UP, 4)]
    assert found == [(False, False)] * 7 + [(ends, False)]
    env.close()


def test_an_episode_goes_on_if_what_was_done_comes_undone() -> None:
    env = gymnasium.make("diffplan/StackRearrange-v1", on_pile=0.0)
    observation, _ = env.reset(seed=0, options={"pairs": np.array([[0, 1]])})
    blocks = read_blocks(observation)
    moves = list_placement(0, blocks[0], blocks[1] + UP, 4)
    for action in moves[:7]:
        *_, infos = env.step(action)
    assert infos["success"]
    grasp = moves[6].copy()
    grasp[7] = 1
    _, _, terminated, truncated, infos = env.step(grasp)
    assert (terminated, truncated, infos["success"]) == (False, False, False)
    env.close()


def test_a_move_is_drawn_while_it_lasts_and_is_the_same_for_it() -> None:
    drawn = gymnasium.make("diffplan/StackConditional-v1", render_mode="rgb_array_list", width=80, height=60)
    plain = gymnasium.make("diffplan/StackConditional-v1")
    observation, _ = drawn.reset(seed=1)
    plain.reset(seed=1)
    assert len(drawn.render()) == 1
    blocks = read_blocks(observation)
    numbers = []
    for action in list_placement(0, blocks[0], blocks[1] + UP, 4)[:4]:
        before = observation
        observation = drawn.step(action)[0]
        np.testing.assert_array_equal(observation, plain.step(action)[0])
        switches = np.array([(action[7:] != before[14::8]).any()])
        steps = count_control_steps(before[None, :7], action[None, :7], switches)
        frames = drawn.render()
        assert len(frames) == pytest.approx(steps[0] / 2, abs=4)  # from where it is, not from where it was told to be
        numbers.append(len(frames))
    assert numbers[0] > numbers[2]  # a swing takes longer than the switch of the cup
    assert (frames[0].shape, drawn.metadata["render_fps"], drawn.render()) == ((60, 80, 3), 10, [])
    for env in (drawn, plain):
        env.close()
