"""Where blocks lie at first, what an episode asks for, and what counts as stacked.

Blocks are numbered from 0. An arrangement is a list of piles, each a list of blocks from the bottom up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from diffplan_envs.arm import BLOCK_SIZE

Kind = Literal["unconditional", "conditional", "rearrange"]
Rule = Literal["strict", "paper"]
MIN_BLOCKS, MAX_BLOCKS = 2, 6
RADIUS = 0.6
"""Piles stand on a circle around the arm, in m."""
SPACING = 0.2
"""Least distance between the centres of two piles, in m."""
PILE_NOISE = 0.01
"""A block in a pile is at most this far from the one below, along x and y, in m."""
START_PILES = {"unconditional": 0.0, "conditional": 0.0, "rearrange": 0.5}
"""Probability with which a block is put on a pile at the start of an episode."""
_TARGET_PILES = 0.6
_MAX_TRIES = 1000

Arrangement = list[list[int]]


def draw_piles(generator: np.random.Generator, num_blocks: int, on_pile: float) -> Arrangement:
    """A random arrangement: each block in random order is put on a random pile with a probability, or begins one."""
    piles: Arrangement = []
    for block in generator.permutation(num_blocks).tolist():
        if piles and generator.random() < on_pile:
            piles[generator.integers(len(piles))].append(block)
        else:
            piles.append([block])
    return piles


def place_piles(generator: np.random.Generator, piles: Arrangement) -> np.ndarray:
    """Poses of the blocks of an arrangement: position and quaternion, float64[blocks, 7], with a random yaw each."""
    poses = np.zeros((sum(map(len, piles)), 7))
    centers = _draw_centers(generator, len(piles))
    for center, pile in zip(centers, piles, strict=True):
        for level, block in enumerate(pile):
            noise = generator.uniform(-PILE_NOISE, PILE_NOISE, 2) if level else np.zeros(2)
            yaw = generator.uniform(-np.pi, np.pi)
            poses[block] = [*(center + noise), BLOCK_SIZE * (level + 0.5), np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
    return poses


def _draw_centers(generator: np.random.Generator, num: int) -> np.ndarray:
    for _ in range(_MAX_TRIES):
        angles = generator.uniform(-np.pi, np.pi, num)
        centers = RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        distances = np.linalg.norm(centers[:, None] - centers, axis=2) + SPACING * np.eye(num)
        if distances.min() >= SPACING:
            return centers
    raise AssertionError(f"no place found for {num} piles in {_MAX_TRIES} tries")


def find_free_spot(generator: np.random.Generator, positions: np.ndarray, moved: int) -> np.ndarray:
    """A place on the floor for a block, float64[3], away from the other blocks at positions float[blocks, 3].

    Raises:
        ValueError: no such place was found.
    """
    others = np.delete(positions, moved, axis=0)[:, :2]
    for _ in range(_MAX_TRIES):
        angle = generator.uniform(-np.pi, np.pi)
        spot = RADIUS * np.array([np.cos(angle), np.sin(angle)])
        if np.linalg.norm(others - spot, axis=1).min() >= SPACING:
            return np.array([*spot, BLOCK_SIZE / 2])
    raise ValueError("positions: expected a free place on the circle around the arm, found none")


def find_freest_spot(positions: np.ndarray, moved: int) -> np.ndarray:
    """The place on the floor for a block that is furthest from the others at positions float[blocks, 3], float64[3]."""
    angles = np.linspace(-np.pi, np.pi, 72, endpoint=False)
    spots = RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    others = np.delete(positions, moved, axis=0)[:, :2]
    distances = np.linalg.norm(spots[:, None] - others, axis=2).min(axis=1)
    return np.array([*spots[distances.argmax()], BLOCK_SIZE / 2])


def find_on(positions: np.ndarray, rule: Rule = "strict") -> np.ndarray:
    """Which blocks lie on which, bool[..., blocks, blocks]: entry [i, j] says that i is on j.

    Args:
        positions: centres of the blocks in m, float[..., blocks, 3].
        rule: `strict`: less than 5 cm aside and 7 to 13 cm above; `paper` (Janner et al. 2022): less than 20 cm aside
            and more than 5 cm above.
    """
    apart = positions[..., :, None, :] - positions[..., None, :, :]
    aside, above = np.linalg.norm(apart[..., :2], axis=-1), apart[..., 2]
    if rule == "strict":
        return (aside < 0.05) & (above > 0.07) & (above < 0.13)
    return (aside < 0.2) & (above > 0.05)


def count_right(positions: np.ndarray, pairs: np.ndarray, rule: Rule = "strict") -> int:
    """How many pairs (top, bottom), int[pairs, 2], are stacked, for positions float[blocks, 3]."""
    on = find_on(positions, rule)
    return int(on[pairs[:, 0], pairs[:, 1]].sum())


def measure_tower(positions: np.ndarray, rule: Rule = "strict") -> int:
    """Blocks in the tallest tower, for positions float[blocks, 3]; of one block if nothing is stacked."""
    # By the rule of the paper a block is on every block below it in a pile; a tower has each level once.
    on = find_on(positions, rule) & (positions[:, None, 2] - positions[None, :, 2] < 1.3 * BLOCK_SIZE)
    heights = np.ones(len(positions), dtype=int)
    for block in np.argsort(positions[:, 2], kind="stable"):
        heights[block] += heights[on[block]].max(initial=0)
    return int(heights.max())


def draw_pairs(generator: np.random.Generator, kind: Kind, piles: Arrangement) -> np.ndarray:
    """What an episode asks for: pairs (top, bottom) from the bottom up, int[pairs, 2]; none for a tower of any blocks.

    Args:
        generator: source of the draws.
        kind: `conditional` asks for all blocks in a random order, `rearrange` for the pairs of a random arrangement
            that are not all stacked yet.
        piles: the arrangement at the start.
    """
    num_blocks = sum(map(len, piles))
    if kind == "unconditional":
        return np.zeros((0, 2), dtype=int)
    if kind == "conditional":
        return np.array(list_pairs([generator.permutation(num_blocks).tolist()]))
    for _ in range(_MAX_TRIES):
        pairs = list_pairs(draw_piles(generator, num_blocks, _TARGET_PILES))
        if set(pairs) - set(list_pairs(piles)):
            return np.array(pairs)
    raise AssertionError(f"no target found in {_MAX_TRIES} tries")


def list_pairs(piles: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The pairs (top, bottom) of an arrangement, pile by pile from the bottom up."""
    return [(pile[level], pile[level - 1]) for pile in piles for level in range(1, len(pile))]


def count_moves(piles: Arrangement, pairs: np.ndarray) -> int:
    """Fewest moves of one block after which all pairs (top, bottom), int[pairs, 2], are stacked; see `find_moves`."""
    return len(find_moves(piles, pairs))


def find_moves(piles: Arrangement, pairs: np.ndarray) -> list[tuple[int, int | None]]:
    """The fewest moves after which all pairs are stacked, by breadth-first search.

    Args:
        piles: the arrangement at first.
        pairs: (top, bottom), int[pairs, 2].

    Returns:
        Moves (block, support): from the top of a pile to the top of another, or to the floor (None).

    Raises:
        ValueError: pairs that exclude each other.
    """
    wanted = {(int(top), int(bottom)) for top, bottom in pairs}
    begin = _freeze(piles)
    came_from: dict[State, tuple[State, tuple[int, int | None]] | None] = {begin: None}
    frontier = [begin]
    while frontier:
        following = []
        for state in frontier:
            if wanted <= set(list_pairs(state)):
                return _trace(came_from, state)
            for move, after in _list_moves(state):
                if after not in came_from:
                    came_from[after] = state, move
                    following.append(after)
        frontier = following
    raise ValueError(f"pairs: expected pairs that can be stacked at once, got {pairs.tolist()}")


def read_piles(positions: np.ndarray) -> Arrangement:
    """The arrangement of blocks at positions float[blocks, 3], by the strict rule."""
    on = find_on(positions)
    piles: Arrangement = []
    for bottom in np.flatnonzero(~on.any(axis=1)).tolist():
        pile = [bottom]
        while len(above := np.flatnonzero(on[:, pile[-1]])):
            pile.append(int(above[0]))
        piles.append(pile)
    return piles


State = tuple[tuple[int, ...], ...]


def _freeze(piles: Sequence[Sequence[int]]) -> State:
    return tuple(sorted(tuple(pile) for pile in piles if pile))


def _trace(
    came_from: Mapping[State, tuple[State, tuple[int, int | None]] | None], state: State
) -> list[tuple[int, int | None]]:
    """The moves that led to a state."""
    moves = []
    while (step := came_from[state]) is not None:
        state, move = step
        moves.append(move)
    return moves[::-1]


def _list_moves(state: State) -> Iterator[tuple[tuple[int, int | None], State]]:
    """The moves of the tops of piles, and the arrangements after them."""
    for source in state:
        rest = [pile for pile in state if pile is not source]
        block, left = source[-1], source[:-1]
        if left:
            yield (block, None), _freeze([*rest, left, (block,)])
        for target in rest:
            others = [pile for pile in rest if pile is not target]
            yield (block, target[-1]), _freeze([*others, left, (*target, block)])
