"""Scripted placements: the next placement for what is asked, and the moves of the arm that make it.

A placement takes 8 moves: over the block, down, suck, up, over the place, down, let go, up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffplan.config import EnvConfig
from diffplan.tasks.stacking.columns import find_space, is_fine, read_pairs
from diffplan_envs.arm import BLOCK_SIZE, find_cup, solve_joints
from diffplan_envs.stacking import PLACEMENT_MOVES
from diffplan_envs.stacking_rules import find_free_spot, find_moves, read_piles
from diffplan_envs.stacking_scene import count_control_steps, ease
from diffplan_envs.stacking_spaces import StackingSpace, bring_within_reach, wind

NOISE = 0.01
"""The demonstrator grasps and places at most this far from the middle, along x and y, in m."""
_CLEARANCE = 0.03
"""Height of a carried block over everything else, in m."""
_GAP = 0.004
"""Height over its support at which a block is let go, in m."""
_ON_PILE = {True: 0.85, False: 0.5}
"""Probability with which the demonstrator puts a block on another, for one on the floor and one on a pile."""


@dataclass(frozen=True)
class Placement:
    """A block and where to put it.

    Attributes:
        block: which block.
        support: the block to put it on; None for the floor.
    """

    block: int
    support: int | None

    def find_target(self, positions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Where the middle of the block is to be, float64[3]; a free place is drawn on the floor."""
        if self.support is None:
            return find_free_spot(generator, positions, self.block)
        return positions[self.support] + [0, 0, BLOCK_SIZE]


def find_next(positions: np.ndarray, pairs: np.ndarray) -> Placement | None:
    """The first of the fewest placements after which all pairs (top, bottom) are stacked; None if they are.

    Args:
        positions: float[blocks, 3].
        pairs: int[pairs, 2].
    """
    moves = find_moves(read_piles(positions), pairs)
    return Placement(*moves[0]) if moves else None


def find_next_of_tower(positions: np.ndarray) -> Placement | None:
    """The next placement for a tower of all blocks: from the lowest pile to the highest; None if it stands."""
    piles = sorted(read_piles(positions), key=len)
    return None if len(piles) == 1 else Placement(piles[0][-1], piles[-1][-1])


def draw_next(positions: np.ndarray, generator: np.random.Generator) -> Placement:
    """A random placement of a block with nothing on it."""
    tops = [pile[-1] for pile in read_piles(positions)]
    block = int(generator.choice(tops))
    others = [top for top in tops if top != block]
    is_on_floor = positions[block, 2] < BLOCK_SIZE
    if others and generator.random() < _ON_PILE[bool(is_on_floor)]:
        return Placement(block, int(generator.choice(others)))
    return Placement(block, None)


@dataclass(frozen=True)
class Moves:
    """The moves of the cup in a placement.

    Attributes:
        cups: positions of the cup, float64[moves, 3].
        held: for each move and block 1 where the cup holds it, float64[moves, blocks].
    """

    cups: np.ndarray
    held: np.ndarray


def list_moves(positions: np.ndarray, block: int, target: np.ndarray, noise: np.ndarray | None = None) -> Moves:
    """The 8 moves of a placement.

    Args:
        positions: of the blocks, float[blocks, 3].
        block: which one is moved.
        target: where its middle is to be, float[3].
        noise: how far aside it is grasped and put, float[2, 2]; None for 0.
    """
    aside = np.zeros((2, 3))
    aside[:, :2] = 0.0 if noise is None else noise
    grasp = positions[block] + [0, 0, BLOCK_SIZE / 2] + aside[0]
    release = target + [0, 0, BLOCK_SIZE / 2 + _GAP] + aside[0] + aside[1]
    height = max(positions[:, 2].max(), target[2]) + 1.5 * BLOCK_SIZE + _CLEARANCE
    over_block, over_target = (np.array([*place[:2], height]) for place in (grasp, release))
    cups = np.array([over_block, grasp, grasp, over_block, over_target, release, release, over_target])
    held = np.zeros((PLACEMENT_MOVES, len(positions)))
    held[2:6, block] = 1
    return Moves(cups, held)


def stay(cup: np.ndarray, num_blocks: int) -> Moves:
    """As many moves as a placement has, all to where the cup is, float[3]."""
    return Moves(np.tile(cup, (PLACEMENT_MOVES, 1)), np.zeros((PLACEMENT_MOVES, num_blocks)))


def find_angles(moves: Moves, present: float) -> np.ndarray:
    """Joint angles of the moves, float64[moves, 7], from an angle of the first joint.

    A block that was pushed out of reach is reached for as far as the arm can.
    """
    joints = solve_joints(bring_within_reach(moves.cups))
    for i, angle in enumerate(joints[:, 0].tolist()):
        joints[i, 0] = present = float(wind(np.array(present), np.array(angle)))
    return joints


def list_actions(moves: Moves, observation: np.ndarray, space: StackingSpace, *, is_fine: bool) -> np.ndarray:
    """The actions that make the moves from an observation, float32[actions, columns].

    Args:
        moves: the moves.
        observation: float[columns].
        space: of the environment.
        is_fine: whether a step of the environment is 0.05 s; there are then several for a move.
    """
    if not is_fine:
        told = moves.cups if space.name == "cup" else find_angles(moves, float(observation[0]))
        return np.concatenate([told, moves.held], axis=1).astype(np.float32)
    before, *_ = space.read_state(observation)
    steps, held = [], np.zeros(space.num_blocks)
    for after, holds in zip(find_angles(moves, float(before[0])), moves.held, strict=True):
        switches = np.array([(holds != held).any()])
        num = int(count_control_steps(before[None], after[None], switches)[0])
        joints = before + (after - before) * ease(num)[:, None]
        told = find_cup(joints) if space.name == "cup" else joints
        steps.append(np.concatenate([told, np.tile(holds, (num, 1))], axis=1))
        before, held = after, holds
    return np.concatenate(steps).astype(np.float32)


class Placements:
    """The actions that are left of the present placement of each environment of a batch.

    Args:
        env: the environment.
        num_envs: size of the batch.
    """

    def __init__(self, env: EnvConfig, num_envs: int) -> None:
        self.space = find_space(env)
        self._is_fine = is_fine(env)
        self._left: list[list[np.ndarray]] = [[] for _ in range(num_envs)]

    def find_due(self) -> list[int]:
        """Environments whose placement is over."""
        return [env for env, actions in enumerate(self._left) if not actions]

    def begin(self, env: int, observation: np.ndarray, moves: Moves) -> None:
        """Begin a placement with these moves."""
        self._left[env] = [*list_actions(moves, observation, self.space, is_fine=self._is_fine)]

    def act(self) -> np.ndarray:
        """The next actions, float32[num_envs, columns]."""
        return np.stack([actions.pop(0) for actions in self._left])


class Demonstrator:
    """A behavior that puts random blocks on each other or on the floor, not always in the middle.

    Args:
        env: the environment.
    """

    def __init__(self, env: EnvConfig) -> None:
        self._env = env

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes."""
        self._generators = generators
        self._placements = Placements(self._env, len(observations))

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, columns]."""
        for i in self._placements.find_due():
            generator = self._generators[i]
            positions = self._placements.space.read_blocks(observations[i])
            placement = draw_next(positions, generator)
            target = placement.find_target(positions, generator)
            noise = generator.uniform(-NOISE, NOISE, (2, 2))
            self._placements.begin(i, observations[i], list_moves(positions, placement.block, target, noise))
        return self._placements.act()

    def columns(self) -> dict[str, np.ndarray]:
        """No further columns."""
        return {}


class DemonstratorPolicy:
    """The demonstrator as a policy: it does not know what is asked.

    Args:
        env: the environment.
        seeds: one for each environment of the batch.
    """

    def __init__(self, env: EnvConfig, seeds: Sequence[int]) -> None:
        self._seeds, self._demonstrator = seeds, Demonstrator(env)

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes."""
        del goals
        self._demonstrator.reset(observations, [np.random.default_rng(seed) for seed in self._seeds])

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, columns]."""
        return self._demonstrator.act(observations)


class Script:
    """A policy that knows what is asked and makes the placements that it takes, as well as the arm can.

    Args:
        env: the environment.
        seeds: one for each environment of the batch: of the places on the floor for blocks that are in the way.
    """

    def __init__(self, env: EnvConfig, seeds: Sequence[int]) -> None:
        self._env, self._seeds = env, seeds

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes."""
        self._generators = [np.random.default_rng(seed) for seed in self._seeds]
        self._pairs = [read_pairs(None if goals is None else goals[i]) for i in range(len(observations))]
        self._placements = Placements(self._env, len(observations))

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, columns]; it stays where it is once all is done."""
        space = self._placements.space
        for i in self._placements.find_due():
            pairs, positions = self._pairs[i], space.read_blocks(observations[i])
            placement = find_next(positions, pairs) if len(pairs) else find_next_of_tower(positions)
            if placement is None:
                arm = space.read_arm(observations[i])
                moves = stay(arm if space.name == "cup" else find_cup(arm), space.num_blocks)
            else:
                target = placement.find_target(positions, self._generators[i])
                moves = list_moves(positions, placement.block, target)
            self._placements.begin(i, observations[i], moves)
        return self._placements.act()
