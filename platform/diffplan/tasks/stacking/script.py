"""Scripted placements: the next placement for what is asked, and the moves of the arm that make it.

A placement takes 8 moves: over the block, down, suck, up, over the place, down, let go, up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffplan.tasks.stacking.columns import read_blocks, read_pairs
from diffplan_envs.arm import BLOCK_SIZE, NUM_JOINTS, solve_joints
from diffplan_envs.stacking import PLACEMENT_MOVES
from diffplan_envs.stacking_rules import find_free_spot, find_moves, read_piles
from diffplan_envs.stacking_scene import count_control_steps, ease

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


def list_moves(observation: np.ndarray, block: int, target: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """The moves of a placement, float32[8, 7 + blocks].

    Args:
        observation: the present one, float[7 + 8 * blocks].
        block: which block.
        target: where its middle is to be, float[3].
        noise: how far aside it is grasped and put, float[2, 2]; None for 0.
    """
    positions = read_blocks(observation)
    aside = np.zeros((2, 3))
    aside[:, :2] = 0.0 if noise is None else noise
    grasp = positions[block] + [0, 0, BLOCK_SIZE / 2] + aside[0]
    release = target + [0, 0, BLOCK_SIZE / 2 + _GAP] + aside[0] + aside[1]
    height = max(positions[:, 2].max(), target[2]) + 1.5 * BLOCK_SIZE + _CLEARANCE
    over_block, over_target = (np.array([*place[:2], height]) for place in (grasp, release))
    cups = [over_block, grasp, grasp, over_block, over_target, release, release, over_target]
    joints = solve_joints(np.array(cups))
    joints[:, 0] = _wind(float(observation[0]), joints[:, 0])
    held = np.zeros((PLACEMENT_MOVES, len(positions)))
    held[2:6, block] = 1
    return np.concatenate([joints, held], axis=1).astype(np.float32)


def _wind(present: float, angles: np.ndarray) -> np.ndarray:
    """Equal angles that the first joint reaches on the shorter way, unless it would then have turned more than once."""
    wound = []
    for angle in angles.tolist():
        near = angle + 2 * np.pi * round((present - angle) / (2 * np.pi))
        present = near - 2 * np.pi * np.sign(near) if abs(near) > 2 * np.pi else near
        wound.append(present)
    return np.array(wound)


def refine_moves(joints: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Moves as eased steps of 0.05 s, float32[steps, 7 + blocks].

    Args:
        joints: joint angles before the first move, float[7].
        moves: float[moves, 7 + blocks].
    """
    steps, before, held = [], np.asarray(joints, dtype=np.float64), np.zeros(moves.shape[1] - NUM_JOINTS)
    for move in moves.astype(np.float64):
        after, switches = move[:NUM_JOINTS], (move[NUM_JOINTS:] != held).any()
        num = int(count_control_steps(before[None], after[None], np.array([switches]))[0])
        targets = before + (after - before) * ease(num)[:, None]
        steps.append(np.concatenate([targets, np.tile(move[NUM_JOINTS:], (num, 1))], axis=1))
        before, held = after, move[NUM_JOINTS:]
    return np.concatenate(steps).astype(np.float32)


class Placements:
    """The actions that are left of the present placement of each environment.

    Args:
        num_envs: size of the batch.
        is_fine: whether a step of the environment is 0.05 s, not a whole move.
    """

    def __init__(self, num_envs: int, *, is_fine: bool) -> None:
        self._left: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
        self._is_fine = is_fine

    def find_due(self) -> list[int]:
        """Environments whose placement is over."""
        return [env for env, actions in enumerate(self._left) if not actions]

    def begin(self, env: int, observation: np.ndarray, moves: np.ndarray) -> None:
        """Begin a placement with these moves, float[8, 7 + blocks]."""
        self._left[env] = [*(refine_moves(observation[:NUM_JOINTS], moves) if self._is_fine else moves)]

    def act(self) -> np.ndarray:
        """The next actions, float32[num_envs, 7 + blocks]."""
        return np.stack([actions.pop(0) for actions in self._left])


class Demonstrator:
    """A behavior that puts random blocks on each other or on the floor, not always in the middle.

    Args:
        is_fine: whether a step of the environment is 0.05 s, not a whole move.
    """

    def __init__(self, *, is_fine: bool) -> None:
        self._is_fine = is_fine

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes."""
        self._generators = generators
        self._placements = Placements(len(observations), is_fine=self._is_fine)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, 7 + blocks]."""
        for i in self._placements.find_due():
            observation, generator = observations[i], self._generators[i]
            positions = read_blocks(observation)
            placement = draw_next(positions, generator)
            target = placement.find_target(positions, generator)
            noise = generator.uniform(-NOISE, NOISE, (2, 2))
            self._placements.begin(i, observation, list_moves(observation, placement.block, target, noise))
        return self._placements.act()

    def columns(self) -> dict[str, np.ndarray]:
        """No further columns."""
        return {}


class DemonstratorPolicy:
    """The demonstrator as a policy: it does not know what is asked.

    Args:
        seeds: one for each environment.
        is_fine: as for `Demonstrator`.
    """

    def __init__(self, seeds: Sequence[int], *, is_fine: bool) -> None:
        self._seeds, self._demonstrator = seeds, Demonstrator(is_fine=is_fine)

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes."""
        del goals
        self._demonstrator.reset(observations, [np.random.default_rng(seed) for seed in self._seeds])

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, 7 + blocks]."""
        return self._demonstrator.act(observations)


class Script:
    """A policy that knows what is asked and makes the placements that it takes, as well as the arm can.

    Args:
        seeds: one for each environment: of the places on the floor where it puts blocks that are in the way.
        is_fine: as for `Demonstrator`.
    """

    def __init__(self, seeds: Sequence[int], *, is_fine: bool) -> None:
        self._seeds, self._is_fine = seeds, is_fine

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes."""
        self._generators = [np.random.default_rng(seed) for seed in self._seeds]
        self._pairs = [read_pairs(None if goals is None else goals[i]) for i in range(len(observations))]
        self._placements = Placements(len(observations), is_fine=self._is_fine)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, 7 + blocks]; it stays where it is once all is done."""
        for i in self._placements.find_due():
            observation, pairs = observations[i], self._pairs[i]
            positions = read_blocks(observation)
            placement = find_next(positions, pairs) if len(pairs) else find_next_of_tower(positions)
            if placement is None:
                moves = np.r_[observation[:NUM_JOINTS], np.zeros(len(positions))][None].repeat(PLACEMENT_MOVES, axis=0)
            else:
                target = placement.find_target(positions, self._generators[i])
                moves = list_moves(observation, placement.block, target)
            self._placements.begin(i, observation, moves)
        return self._placements.act()
