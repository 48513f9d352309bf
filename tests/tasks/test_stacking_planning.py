"""Planning of placements: symmetries of the data, guides, what each stage asks for, and the ends of plans."""

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.config import EnvConfig
from diffplan.diffusion.guidance import PlanBatch
from diffplan.diffusion.guide_expressions import parse_guides
from diffplan.diffusion.guides import WeightedSum
from diffplan.errors import ConfigError, PlanningError
from diffplan.layout import Layout
from diffplan.planning.refining import find_projection
from diffplan.tasks.registry import get_preset, list_guides, task_of
from diffplan.tasks.stacking.asking import ask_for_pairs, place_next
from diffplan.tasks.stacking.columns import find_space
from diffplan.tasks.stacking.guides import Contact, Settle, Tower
from diffplan.tasks.stacking.script import find_next, list_actions, list_moves
from diffplan_envs.arm import BLOCK_SIZE
from diffplan_envs.stacking import PLACEMENT_MOVES
from diffplan_envs.stacking_rules import (
    RADIUS,
    SPACING,
    count_right,
    draw_pairs,
    draw_piles,
    find_freest_spot,
    measure_tower,
    place_piles,
)

SPACES = ["cup", "joints"]


def make_config(space="cup", **kwargs):
    return EnvConfig(env_id="diffplan/StackConditional-v1", env_kwargs={"space": space, **kwargs})


def run_placement(space_name, seed, block=0, support=1, start=None, actions=None):
    """Observations and actions of a scripted placement in the environment, float64[9 and 8, columns]."""
    config = make_config(space_name)
    space = find_space(config)
    env = gymnasium.make(config.env_id, **config.env_kwargs)
    observation, _ = env.reset(seed=seed, options=None if start is None else {"observation": start})
    if actions is None:
        positions = space.read_blocks(observation)
        moves = list_moves(positions, block, positions[support] + [0, 0, BLOCK_SIZE])
        actions = list_actions(moves, observation, space, is_fine=False)
    observations = [observation]
    for action in actions:
        observations.append(env.step(action)[0])
    env.close()
    return np.stack(observations), np.asarray(actions)


def make_batch(observations):
    transitions = torch.from_numpy(np.asarray(observations, dtype=np.float32))
    return PlanBatch(transitions, transitions, Layout(transitions.shape[2]), (), (), None)


@pytest.mark.parametrize("space_name", SPACES)
@pytest.mark.parametrize("name", ["turns", "exchanges"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_changed_window_is_what_the_environment_does(space_name, name, seed):
    """From the changed start, the changed actions lead to the changed observations."""
    config = make_config(space_name)
    observations, actions = run_placement(space_name, seed)
    symmetry = task_of(config).symmetries[name](config)
    draws = torch.from_numpy(np.random.default_rng(seed + 10).random((1, symmetry.num_draws)))
    changed, told = symmetry.apply(
        torch.from_numpy(observations)[None],
        torch.from_numpy(np.append(actions, actions[-1:], 0)).double()[None],
        draws,
    )
    assert not np.allclose(changed[0], observations, atol=0.05)
    found, _ = run_placement(space_name, seed, start=changed[0, 0].numpy(), actions=told[0, :-1].numpy())
    space = find_space(config)
    # A turned arm may reach the same place the other way round, with another lag at the end of a move.
    nearness = 0.015 if name == "turns" else 2e-3
    assert np.abs(space.read_blocks(found) - space.read_blocks(changed[0].numpy())).max() < nearness
    assert np.array_equal(space.read_held(found), space.read_held(changed[0].numpy()))
    assert np.abs(space.read_arm(found) - space.read_arm(changed[0].numpy())).max() < max(nearness, 5e-3)


@pytest.mark.parametrize("space_name", SPACES)
@pytest.mark.parametrize("name", ["turns", "exchanges"])
def test_windows_without_actions_change_alike(space_name, name):
    config = make_config(space_name)
    observations, actions = (torch.from_numpy(each)[None] for each in run_placement(space_name, 3))
    symmetry = task_of(config).symmetries[name](config)
    draws = torch.full((1, symmetry.num_draws), 0.3) + torch.arange(symmetry.num_draws) % 3 / 10
    with_actions, _ = symmetry.apply(observations[:, :8], actions, draws)
    alone, none = symmetry.apply(observations[:, :8], actions[:, :, :0], draws)
    assert torch.equal(with_actions, alone)
    assert none.shape == (1, 8, 0)


@pytest.mark.parametrize("space_name", SPACES)
@pytest.mark.parametrize("support", [1, 3])
def test_real_placements_obey_contact_and_disturbed_ones_do_not(space_name, support):
    observations, _ = run_placement(space_name, 5, support=support)
    space = find_space(make_config(space_name))
    # The arm's own errors: half a millimetre of sag, and a gap of 4 mm over the support.
    contact = Contact(space_name)
    assert contact.score(make_batch([observations]))[0] > -0.05
    jumping, missing, empty = (observations.copy() for _ in range(3))
    jumping[4:, list(space.block_columns[6:8])] += 0.1
    missing[2:4, 0] += 0.1
    empty[:, list(space.held_columns)] = 0.0
    for name, disturbed in (("a block jumps", jumping), ("the cup misses", missing), ("nothing is held", empty)):
        assert contact.score(make_batch([disturbed]))[0] < -0.5, name


def test_misses_are_counted():
    observations, _ = run_placement("cup", 5)
    held = list(find_space(make_config()).held_columns)
    for change, misses in (
        (lambda o: o.__setitem__((slice(None), held), 0.0), 1),  # none is taken
        (lambda o: o.__setitem__((slice(3, 5), held[2]), 1.0), 1),  # two are
        (lambda o: o.__setitem__((4, held[0]), 0.0), 1),  # one is taken twice
        (lambda o: o.__setitem__((slice(3, None), held[0]), 1.0), 1),  # it is never let go
        (lambda o: None, 0),
    ):
        disturbed = observations.copy()
        change(disturbed)
        plans = make_batch([disturbed])
        counted = Contact("cup", miss=10.0).score(plans)[0] - Contact("cup", miss=0.0).score(plans)[0]
        assert counted == pytest.approx(-10.0 * misses)


@pytest.mark.parametrize("space_name", SPACES)
def test_steps_along_the_gradient_mend_a_plan(space_name):
    observations, _ = run_placement(space_name, 5)
    space = find_space(make_config(space_name))
    disturbed = observations.copy()
    noise = np.random.default_rng(0).normal(size=(8, space.num_arm)) * (0.02 if space_name == "cup" else 0.01)
    disturbed[1:, : space.num_arm] += noise
    x = torch.from_numpy(disturbed.astype(np.float32))[None]
    contact = Contact(space_name)
    before = contact.score(make_batch(x))[0]
    for _ in range(60):
        leaf = x.clone().requires_grad_(True)
        plans = PlanBatch(leaf, leaf, Layout(leaf.shape[2]), (), (), None)
        (gradient,) = torch.autograd.grad(contact.score(plans).sum(), leaf)
        x = (x + 0.0005 * gradient).detach()
    assert contact.score(make_batch(x))[0] > 0.2 * before


@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_the_tower_of_a_plan_is_that_of_the_rules(num_blocks, on_pile, seed):
    generator = np.random.default_rng(seed)
    poses = place_piles(generator, draw_piles(generator, num_blocks, on_pile))
    observations = np.zeros((1, 9, 3 + 4 * num_blocks), dtype=np.float32)
    observations[:, :, find_space(make_config(num_blocks=num_blocks)).block_columns] = poses[:, :3].ravel()
    assert Tower("cup", weight=1.0).score(make_batch(observations))[0] == measure_tower(poses[:, :3])


def test_guides_refuse_plans_of_something_else():
    with pytest.raises(PlanningError, match="block stacking in the space cup, got observations of 5 columns"):
        Contact("cup").score(make_batch(np.zeros((1, 9, 5))))


@settings(deadline=None)
@given(st.integers(3, 6), st.integers(0, 10**6))
def test_a_settled_end_is_possible(num_blocks, seed):
    """A block that ends roughly over another one comes to lie on it, or else on the floor; nothing else has moved."""
    generator = np.random.default_rng(seed)
    space = find_space(make_config(num_blocks=num_blocks))
    blocks = place_piles(generator, draw_piles(generator, num_blocks, 0.0))[:, :3]
    block, support = generator.permutation(num_blocks)[:2]
    first = np.zeros((2, space.observation_size), dtype=np.float32)
    first[:, space.block_columns] = blocks.ravel()
    last = first + generator.normal(size=first.shape).astype(np.float32) * 0.01
    on_block, on_floor = blocks.copy(), blocks.copy()
    on_block[block] = blocks[support] + [0.02, -0.01, 0.12]
    on_floor[block] = [0.1, 0.1, 0.3]  # nothing is there
    last[:, space.block_columns] = np.stack([on_block.ravel(), on_floor.ravel()])
    settled = space.read_blocks(Settle("cup")(first, last))
    rest = np.delete(np.arange(num_blocks), block)
    assert np.allclose(settled[:, rest], blocks[rest], atol=1e-6)
    assert np.allclose(settled[0, block], blocks[support] + [0, 0, BLOCK_SIZE], atol=1e-6)
    assert np.allclose(settled[1, block], [0.1, 0.1, BLOCK_SIZE / 2], atol=1e-6)


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_the_freest_spot_is_free(num_blocks, seed):
    generator = np.random.default_rng(seed)
    positions = place_piles(generator, draw_piles(generator, num_blocks, 0.3))[:, :3]
    spot = find_freest_spot(positions, 0)
    assert np.hypot(*spot[:2]) == pytest.approx(RADIUS)
    assert np.linalg.norm(positions[1:, :2] - spot[:2], axis=1).min() >= SPACING


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_stages_lead_to_the_pairs(num_blocks, seed):
    """Where each plan ends as it is asked to, all pairs are stacked after as many plans as moves are needed."""
    generator = np.random.default_rng(seed)
    piles = draw_piles(generator, num_blocks, 0.5)
    pairs = draw_pairs(generator, "rearrange", piles)
    goals = np.full((1, 2 * (num_blocks - 1)), -1.0)
    goals[0, : pairs.size] = pairs.ravel()
    config = make_config(num_blocks=num_blocks)
    space = find_space(config)
    observation = np.zeros((1, space.observation_size))
    observation[0, space.block_columns] = place_piles(generator, piles)[:, :3].ravel()
    ask = ask_for_pairs(config, observation, {"goal": goals})
    num_plans = 0
    while find_next(space.read_blocks(observation)[0], pairs) is not None:
        (fixed,) = ask.stage(observation, np.array([0])).constraints
        assert fixed.step == -1
        observation[:, fixed.columns] = fixed.values
        num_plans += 1
        assert num_plans <= 2 * num_blocks
    assert count_right(space.read_blocks(observation)[0], pairs) == len(pairs)
    (still,) = ask.stage(observation, np.array([0])).constraints
    assert np.allclose(still.values, observation[:, space.block_columns])


def test_a_block_in_the_way_is_put_aside():
    positions = np.array([[0.6, 0, 0.05], [0.6, 0, 0.15], [-0.6, 0, 0.05]])
    place_next(positions, np.array([[0, 2]]))
    assert positions[1, 2] == pytest.approx(BLOCK_SIZE / 2)
    assert np.linalg.norm(positions[1, :2] - positions[[0, 2], :2], axis=1).min() >= SPACING


def test_towers_of_any_blocks_ask_for_nothing_and_mixed_batches_are_refused():
    config = make_config()
    none, some = np.full(6, -1.0), np.array([0, 1, -1, -1, -1, -1.0])
    ask = ask_for_pairs(config, np.zeros((2, 19)), {"goal": np.stack([none, none])})
    assert ask.stage is None
    assert not ask.constraints
    with pytest.raises(ConfigError, match="a goal of pairs in all episodes of a batch or in none, got both"):
        ask_for_pairs(config, np.zeros((2, 19)), {"goal": np.stack([none, some])})


@pytest.mark.parametrize("name", ["stacking", "stacking-joints"])
def test_the_presets_columns_are_those_of_the_environment(name):
    config = get_preset(name)
    space = find_space(config.env)
    assert config.windows.known_columns == space.block_columns
    assert config.planning.controller.columns == (*range(space.num_arm), *space.held_columns)
    assert config.windows.max_horizon == PLACEMENT_MOVES + 1
    guide = parse_guides(config.planning.guidance.guides, list_guides(config.env))
    assert guide == WeightedSum(((1.0, Contact(space.name)), (1.0, Tower(space.name))))
    assert find_projection(config.planning.selection.refine, config.env) == Settle(space.name)
