"""Block stacking by a robot arm with a suction cup, one environment at a time and in batches.

`gymnasium.make("diffplan/StackConditional-v1")` makes an environment, `gymnasium.make_vec(..., num_envs=64)` a batch. A
batch equals as many single environments to the last bit.

With `space="joints"` an observation is 7 joint angles (rad) and for each block its position (m), its orientation (a
quaternion) and whether it is attached: float64[7 + 8 * blocks]. An action is 7 joint angles to go to and a number for
each block: the cup holds the block while that is above 0.5, if the cup is within 5 cm of the middle of its top when
that begins. With `space="cup"` both have the position of the cup in place of the angles; see `stacking_spaces`.

A step is a move to the joint angles, with an eased speed, of 0.4 to 2 s by its length; 0.2 s where only the cup
switches, which it does when a move begins. With `move_steps=1` (the ids that end with `-Fine-v1`) a step is 0.05 s
long, and goes to the angles at once.

Infos: `goal` int[2 * (blocks - 1)], pairs (top, bottom) with -1 where there are none, and `success`.
"""

# mujoco ships no types for its compiled part:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from diffplan_envs.batch_arguments import check_batch, list_seeds, require_no_autoreset, take_mask
from diffplan_envs.stacking_rules import (
    MAX_BLOCKS,
    MIN_BLOCKS,
    START_PILES,
    Arrangement,
    Kind,
    Rule,
    count_moves,
    count_right,
    draw_pairs,
    draw_piles,
    measure_tower,
    place_piles,
    read_piles,
)
from diffplan_envs.stacking_scene import CONTROL_SECONDS, FRAME_STEPS, HOME, LONGEST_MOVE, StackingScene
from diffplan_envs.stacking_spaces import Space, StackingSpace

import mujoco  # isort: skip  (after the arm, which chooses what mujoco draws with)

PLACEMENT_MOVES = 8
"""Moves of a placement: over the block, down, suck, up, over the place, down, let go, up."""


class StackingVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` arms behind Gymnasium's vector interface.

    A reward is by how much the progress of the episode grew: the share of its pairs that are stacked, or of the levels
    that a tower of all blocks adds to the tallest one at the start. The first step also pays the pairs that were
    stacked at the start, so a return is the progress at the end, from 0 to 1. Nothing is paid while a block is held.
    `reset(options=...)` takes `reset_mask` bool[num_envs], to reset some only, `observation` float[num_envs, columns],
    to start from at rest, and `pairs` int[num_envs, pairs, 2], to ask for.

    Args:
        num_envs: number of environments.
        kind: what episodes ask for: `unconditional`, a tower of any blocks; `conditional`, a tower in a given order;
            `rearrange`, the pairs of a random arrangement, from random piles.
        num_blocks: 2 to 6.
        rule: of what counts as stacked, `strict` or `paper`.
        space: what is observed of the arm and what it is told: `joints` or `cup`; see `StackingSpace`.
        on_pile: probability with which a block is put on a pile at the start; None for that of the kind.
        move_steps: control steps of a step; None for whole moves.
        num_placements: length of every episode in placements. None: at most one less than there are blocks, and for
            `rearrange` at most one more than the fewest that reach the goal; an episode then ends as soon as all that
            was asked has lasted for two moves, or for a second where a step is not a whole move.
        max_episode_steps: steps after which an episode is truncated even if there is time for more placements; None for
            never.
        autoreset_mode: `NEXT_STEP` (Gymnasium's default) or `DISABLED`.
        num_threads: threads that step the batch.
        render_mode: only None; render a single environment.

    Attributes:
        scene: the arms and the blocks.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_envs: int,
        kind: Kind = "unconditional",
        num_blocks: int = 4,
        rule: Rule = "strict",
        space: Space = "joints",
        on_pile: float | None = None,
        move_steps: int | None = None,
        num_placements: int | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int = 1,
        render_mode: str | None = None,
    ) -> None:
        autoreset_mode = check_batch(num_envs, render_mode, autoreset_mode)
        if kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
        if rule not in get_args(Rule):
            raise ValueError(f"rule: expected one of {get_args(Rule)}, got {rule!r}")
        if space not in get_args(Space):
            raise ValueError(f"space: expected one of {get_args(Space)}, got {space!r}")
        if not MIN_BLOCKS <= num_blocks <= MAX_BLOCKS:
            raise ValueError(f"num_blocks: expected {MIN_BLOCKS} to {MAX_BLOCKS}, got {num_blocks}")
        if on_pile is not None and not 0 <= on_pile <= 1:
            raise ValueError(f"on_pile: expected a probability, got {on_pile}")
        if move_steps is not None and move_steps < 1:
            raise ValueError(f"move_steps: expected at least 1, got {move_steps}")
        if num_placements is not None and num_placements < 1:
            raise ValueError(f"num_placements: expected at least 1, got {num_placements}")
        self.num_envs, self.num_blocks = num_envs, num_blocks
        self.kind: Kind = kind
        self.rule: Rule = rule
        self._on_pile = START_PILES[kind] if on_pile is None else on_pile
        self._move_steps, self._num_placements = move_steps, num_placements
        self._lasting_steps = 2 if move_steps is None else math.ceil(1 / (move_steps * CONTROL_SECONDS))
        self.max_episode_steps = max_episode_steps
        self.metadata = {"render_modes": [], "autoreset_mode": autoreset_mode}
        self.render_mode = None
        self.scene = StackingScene(num_envs, num_blocks, num_threads)
        self.space = StackingSpace(space, num_blocks)
        size = self.space.observation_size
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.single_action_space = gymnasium.spaces.Box(*self.space.action_bounds, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._pairs: list[np.ndarray] = [np.zeros((0, 2), dtype=int)] * num_envs
        self._towers = np.ones(num_envs, dtype=int)
        self._limits = np.zeros(num_envs, dtype=int)
        self._progress = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=int)
        self._ended = np.zeros(num_envs, dtype=bool)
        self._done_steps = np.zeros(num_envs, dtype=int)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; an int seeds environment i with `seed + i`, as Gymnasium's vector environments do.

        Raises:
            ValueError: another number of seeds than of environments, or an option that is unknown or wrong.
        """
        seeds = list_seeds(seed, self.num_envs)
        options = dict(options or {})
        mask = take_mask(options, self.num_envs)
        observations, pairs = options.pop("observation", None), options.pop("pairs", None)
        if options:
            raise ValueError(f"reset options: expected reset_mask, observation and pairs, got {sorted(options)}")
        size = self.space.observation_size
        if observations is not None:
            observations = np.asarray(observations, dtype=np.float64)
            if observations.shape != (self.num_envs, size) or not np.isfinite(observations).all():
                raise ValueError(f"observation: expected finite numbers of shape [{self.num_envs}, {size}]")
        if pairs is not None and len(pairs) != self.num_envs:
            raise ValueError(f"pairs: expected {self.num_envs} lists of pairs, got {len(pairs)}")
        for i in np.flatnonzero(mask).tolist():
            if seeds[i] is not None or self._generators[i] is None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
            self._start(
                i,
                None if observations is None else observations[i],
                None if pairs is None else self._check_pairs(pairs[i]),
            )
        return self._observe(), self._make_infos()

    def _check_pairs(self, pairs: Any) -> np.ndarray:
        found = np.asarray(pairs, dtype=int).reshape(-1, 2)
        if len(found) >= self.num_blocks or ((found < 0) | (found >= self.num_blocks)).any():
            raise ValueError(f"pairs: expected pairs (top, bottom) of blocks 0 to {self.num_blocks - 1}, got {pairs}")
        count_moves([[block] for block in range(self.num_blocks)], found)  # refuses pairs that exclude each other
        return found

    def _start(self, i: int, observation: np.ndarray | None, pairs: np.ndarray | None) -> None:
        """Begin an episode in one environment; the same numbers are drawn whatever is given."""
        generator = self._generators[i]
        assert generator is not None
        piles = draw_piles(generator, self.num_blocks, self._on_pile)
        poses = place_piles(generator, piles)
        drawn = draw_pairs(generator, self.kind, piles)
        if observation is None:
            self.scene.place(i, HOME, poses)
        else:
            joints, poses, held = self.space.read_state(observation)
            piles = read_piles(poses[:, :3])
            self.scene.place(i, joints, poses, held)
        self._pairs[i] = drawn if pairs is None else pairs
        self._towers[i] = measure_tower(poses[:, :3], self.rule)
        self._limits[i] = self._find_limit(piles, self._pairs[i])
        self._progress[i], self._steps[i], self._done_steps[i], self._ended[i] = 0.0, 0, 0, False

    def _find_limit(self, piles: Arrangement, pairs: np.ndarray) -> int:
        """Steps of an episode from these piles."""
        if self._num_placements is not None:
            placements = self._num_placements
        else:
            placements = count_moves(piles, pairs) + 1 if self.kind == "rearrange" else self.num_blocks - 1
        steps = placements * PLACEMENT_MOVES * (1 if self._move_steps is None else -(-LONGEST_MOVE // self._move_steps))
        return steps if self.max_episode_steps is None else min(steps, self.max_episode_steps)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move every arm; with `NEXT_STEP`, environments whose episode ended are reset instead.

        Args:
            actions: float[num_envs, columns]; see `StackingSpace`.

        Raises:
            ValueError: actions of another shape.
        """
        return self._step(np.arange(self.num_envs), actions)

    def step_some(
        self, indices: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move some of the arms, int[num] ascending, and leave the others as they are; what `step` returns, for these.

        Raises:
            ValueError: environments that reset themselves, or actions of another shape.
        """
        require_no_autoreset(self.metadata["autoreset_mode"])
        observations, rewards, terminations, truncations, infos = self._step(indices, actions)
        infos = {name: values[indices] for name, values in infos.items()}
        return observations[indices], rewards, terminations, truncations, infos

    def _step(
        self, indices: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions, dtype=np.float64)
        expected = (len(indices), self.space.num_arm + self.num_blocks)
        if actions.shape != expected:
            raise ValueError(f"actions: expected shape {list(expected)}, got {list(actions.shape)}")
        restarting = np.zeros(len(indices), dtype=bool)
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            restarting = self._ended[indices]
            for i in indices[restarting].tolist():
                self._start(i, None, None)
        moving = indices[~restarting]
        targets = self.scene.targets[moving]
        told = self.space.to_joints(actions[~restarting], targets, unwinds=self._move_steps is None)
        self.scene.move(moving, told, self._move_steps)
        self._steps[moving] += 1
        rewards = np.zeros(len(indices))
        rewards[~restarting] = [self._pay(i) for i in moving.tolist()]
        infos = self._make_infos()
        self._done_steps[moving] = np.where(infos["success"][moving], self._done_steps[moving] + 1, 0)
        terminations, truncations = np.zeros((2, len(indices)), dtype=bool)
        if self._num_placements is None:
            terminations[~restarting] = self._done_steps[moving] >= self._lasting_steps
        truncations[~restarting] = self._steps[moving] >= self._limits[moving]
        truncations &= ~terminations
        self._ended[indices] = terminations | truncations
        return self._observe(), rewards, terminations, truncations, infos

    def _pay(self, i: int) -> float:
        """The growth of the progress of an environment since the last step at which nothing was held."""
        if self.scene.held[i].any():
            return 0.0
        progress = self.measure_progress(i)
        grown = progress - self._progress[i]
        self._progress[i] = progress
        return grown

    def measure_progress(self, i: int) -> float:
        """The share of what the episode of environment i asks for that is done, from 0 to 1."""
        positions = self.scene.blocks[i]
        if self.kind == "unconditional":
            return (measure_tower(positions, self.rule) - self._towers[i]) / max(self.num_blocks - self._towers[i], 1)
        return count_right(positions, self._pairs[i], self.rule) / max(len(self._pairs[i]), 1)

    def _observe(self) -> np.ndarray:
        return self.space.observe(self.scene.joints, self.scene.poses, self.scene.held)

    def _make_infos(self) -> dict[str, np.ndarray]:
        goals = np.full((self.num_envs, self.num_blocks - 1, 2), -1.0)
        for i, pairs in enumerate(self._pairs):
            goals[i, : len(pairs)] = pairs
        success = [not self.scene.held[i].any() and self.measure_progress(i) >= 1 for i in range(self.num_envs)]
        return {"goal": goals.reshape(self.num_envs, -1), "success": np.array(success)}


class StackingEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One arm; a batch of one, so both agree. `reset(options=...)` takes `observation` and `pairs`.

    Args:
        render_mode: `rgb_array`, `rgb_array_list` for all frames since the last call of `render`, of which a move has
            ten a second, or None.
        width: of frames, in pixels.
        height: of frames, in pixels.
        **kwargs: arguments of `StackingVectorEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "render_modes": ["rgb_array", "rgb_array_list"],
        "render_fps": 2,
    }

    def __init__(
        self,
        render_mode: Literal["rgb_array", "rgb_array_list"] | None = None,
        width: int = 480,
        height: int = 360,
        **kwargs: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected rgb_array, rgb_array_list or None, got {render_mode!r}")
        move_steps = kwargs.get("move_steps")
        if render_mode == "rgb_array_list":
            move_steps = min(FRAME_STEPS, move_steps or FRAME_STEPS)
        if move_steps is not None:
            frames = round(1 / (move_steps * CONTROL_SECONDS))
            self.metadata = {**self.metadata, "render_fps": frames}  # pyright: ignore[reportIncompatibleVariableOverride]
        self._batch = StackingVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.render_mode = render_mode
        self._size = (height, width)
        self._frames: list[np.ndarray] = []
        if render_mode == "rgb_array_list":
            self._batch.scene.watch = lambda: self._frames.append(self._draw())
        self._renderer: mujoco.Renderer | None = None
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        given = {name: [value] for name, value in (options or {}).items()}
        observations, infos = self._batch.reset(seed=[seed], options=given)
        if self.render_mode == "rgb_array_list":
            self._frames = [self._draw()]
        return observations[0], _take_first(infos)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the arm."""
        observations, rewards, terminations, truncations, infos = self._batch.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(terminations[0]), bool(truncations[0]), _take_first(infos)

    def render(self) -> np.ndarray | list[np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The scene, uint8[height, width, 3], or a list of these; None without a render mode."""
        if self.render_mode == "rgb_array_list":
            frames, self._frames = self._frames, []
            return frames
        return None if self.render_mode is None else self._draw()

    def _draw(self) -> np.ndarray:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._batch.scene.model, *self._size)
        data = self._batch.scene.get_data(0)
        mujoco.mj_camlight(self._batch.scene.model, data)
        self._renderer.update_scene(data)
        return self._renderer.render()

    def close(self) -> None:
        """Free what drawing uses."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _take_first(infos: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: values[0].item() if values.ndim == 1 else values[0] for name, values in infos.items()}
