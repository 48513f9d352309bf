"""Gymnasium's Hopper, Walker2d and HalfCheetah, v4 and v5, in batches that are stepped together in C.

`gymnasium.make_vec("diffplan/Hopper-v4", num_envs=64)` makes a batch, `gymnasium.make("diffplan/Hopper-v4")` makes
Gymnasium's own environment. Both take the arguments of Gymnasium's `Hopper-v4`. A batch equals as many single
environments to the last bit. The robots, the rewards and the episodes are Gymnasium's: a batch reads its settings and
draws its starts from one of Gymnasium's environments, and computes only the sums of a step itself.
"""

# mujoco ships no types for its compiled part:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle, seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

import diffplan_envs.graphics  # noqa: F401  (before mujoco)
from diffplan_envs.batch_arguments import check_batch, list_seeds, require_no_autoreset, take_mask

# isort: split
import mujoco
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv as _HalfCheetahV4
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv as _HalfCheetahV5
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv as HopperV4Env
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv as HopperV5Env
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv as Walker2dV4Env
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv as Walker2dV5Env
from mujoco.batch import Batch

_OLD_ATTRIBUTE = "settotalmass"
"""An attribute in Gymnasium's half_cheetah.xml. MuJoCo calls it deprecated on every compilation."""


@contextlib.contextmanager
def _without_warning(words: str) -> Iterator[None]:
    """Drop MuJoCo's warnings that contain some words; they would go to the terminal and to a file MUJOCO_LOG.TXT."""
    before, messages = mujoco.get_mju_user_warning(), []
    mujoco.set_mju_user_warning(messages.append)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
        for message in messages:
            if words not in message:
                warnings.warn(message, stacklevel=3)


def _pay_speed(x_velocity: Any, target_speed: float | None) -> Any:
    """What a speed is worth: itself, or minus its distance from a target; for numbers and arrays, in m/s."""
    return x_velocity if target_speed is None else -abs(x_velocity - target_speed)


class _TargetSpeed(MujocoEnv):
    """A HalfCheetah that may be paid for a speed; compiled without MuJoCo's warning about an attribute of its model."""

    def __init__(self, target_speed: float | None = None, **kwargs: Any) -> None:
        if target_speed is not None and not np.isfinite(target_speed):
            raise ValueError(f"target_speed: expected a finite number, got {target_speed}")
        self.target_speed = target_speed
        super().__init__(**kwargs)
        EzPickle.__init__(self, target_speed, **kwargs)  # pyright: ignore[reportArgumentType]  # Gymnasium's are EzPickle

    def _initialize_simulation(self) -> tuple[Any, Any]:
        with _without_warning(_OLD_ATTRIBUTE):
            return super()._initialize_simulation()


class HalfCheetahV4Env(_TargetSpeed, _HalfCheetahV4):
    """Gymnasium's `HalfCheetah-v4`, without MuJoCo's warning about an attribute of its model.

    Args:
        target_speed: x velocity to run at, in m/s. In place of its speed the robot is then paid minus the distance from
            this one.
        **kwargs: arguments of Gymnasium's environment.
    """

    def step(self, action: np.ndarray) -> Any:
        """Move for one step; see Gymnasium's environment."""
        observation, reward, terminated, truncated, infos = super().step(action)
        if self.target_speed is not None:
            infos["reward_run"] = self._forward_reward_weight * _pay_speed(infos["x_velocity"], self.target_speed)
            reward = infos["reward_run"] + infos["reward_ctrl"]
        return observation, reward, terminated, truncated, infos


class HalfCheetahV5Env(_TargetSpeed, _HalfCheetahV5):
    """Gymnasium's `HalfCheetah-v5`, without MuJoCo's warning about an attribute of its model.

    Args:
        target_speed: as for `HalfCheetahV4Env`.
        **kwargs: arguments of Gymnasium's environment.
    """

    def _get_rew(self, x_velocity: float, action: np.ndarray) -> tuple[Any, dict[str, Any]]:
        return super()._get_rew(_pay_speed(x_velocity, self.target_speed), action)


class LocomotionVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` robots behind Gymnasium's vector interface; its subclasses are the registered ones.

    Observations (float64), rewards (float64), ends of episodes and infos are those of `num_envs` single environments
    with the same seeds, to the last bit. Each info of the single environment is an array of `num_envs` entries, such as
    `infos["x_position"]` (m) and `infos["x_velocity"]` (m/s), float64[num_envs]. `reset(options=...)` takes
    `reset_mask` bool[num_envs], to reset some only.

    Args:
        num_envs: number of environments.
        max_episode_steps: steps after which an episode is truncated; None for never.
        autoreset_mode: `NEXT_STEP` (Gymnasium's default) or `DISABLED`.
        num_threads: threads that step the batch.
        render_mode: only None; render a single environment.
        **kwargs: arguments of the single environment, such as `reset_noise_scale`.

    Raises:
        ValueError: no environment, a render mode, or `SAME_STEP`.
        TypeError: an argument that the single environment does not have.
    """

    single_class: ClassVar[type[MujocoEnv]]
    """Gymnasium's environment."""
    version: ClassVar[int]
    """4 or 5. They differ in infos, and in the reward of a robot that falls."""
    max_velocity: ClassVar[float] = 10.0
    """Velocities in observations are clipped to this, in m/s or rad/s."""

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int = 1,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        autoreset_mode = check_batch(num_envs, render_mode, autoreset_mode)
        # Any, for the settings of Gymnasium's environments are private attributes.
        self._single: Any = self.single_class(**kwargs)
        self._drawn: list[tuple[np.ndarray, np.ndarray]] = []
        self._single.set_state = lambda *state: self._drawn.append(state)  # `reset_model` ends there
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.metadata = {**self._single.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = None
        self.single_observation_space = self._single.observation_space
        self.single_action_space = self._single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._first_position = int(self._single._exclude_current_positions_from_observation)
        self._batch = Batch(self._single.model, nsim=num_envs, nthread=num_threads)
        self._positions, self._velocities = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._controls = self._batch.bind("ctrl")
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._episode_steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        return self._single.dt

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; an int seeds environment i with `seed + i`, as Gymnasium's vector environments do.

        Raises:
            ValueError: another number of seeds than of environments, a mask of another shape, or an unknown option.
        """
        seeds = list_seeds(seed, self.num_envs)
        options = dict(options or {})
        mask = take_mask(options, self.num_envs)
        if options:
            raise ValueError(f"reset options: expected 'reset_mask', got {sorted(options)}")
        indices = np.flatnonzero(mask)
        for i in indices.tolist():
            if seeds[i] is not None or self._generators[i] is None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
        self._start(indices)
        positions = self._positions[:]
        infos = {} if self.version == 4 else self._place_infos(positions)
        return self._observe(positions, self._velocities[:]), infos

    def _start(self, indices: np.ndarray) -> None:
        """Put robots where Gymnasium's environment puts them, each by its own generator."""
        if not indices.size:
            return
        self._drawn.clear()
        for i in indices.tolist():
            self._single.np_random = self._generators[i]
            self._single.reset_model()
        # Also clears the solver's warm start, without which a reset environment would differ from a new one. Gymnasium
        # computes the forward dynamics now; a step does that first, and comes to the same numbers.
        self._batch.reset(ids=indices, stage=0)
        positions, velocities = zip(*self._drawn, strict=True)
        self._positions[indices], self._velocities[indices] = positions, velocities
        self._episode_steps[indices] = 0
        self._ended[indices] = False

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move every robot for one step; with `NEXT_STEP`, those whose episode ended are reset instead.

        Args:
            actions: float[num_envs, action_dim]; beyond the bounds, they move a robot as much as the bounds but cost
                more.

        Raises:
            ValueError: actions of another shape.
        """
        restarting = np.array([], dtype=int)
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            restarting = np.flatnonzero(self._ended)
        observations, rewards, terminations, truncations, infos = self._move(None, actions)
        if restarting.size:
            self._start(restarting)
            observations = self._observe(self._positions[:], self._velocities[:])
            places = self._place_infos(self._positions)
            for name, values in infos.items():
                values[restarting] = places[name][restarting] if name in places else 0
            rewards[restarting], terminations[restarting], truncations[restarting] = 0.0, False, False
        self._ended = terminations | truncations
        return observations, rewards, terminations, truncations, infos

    def step_some(
        self, indices: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move some of the robots for one step, and leave the others as they are.

        Args:
            indices: which, int[num], ascending.
            actions: float[num, action_dim].

        Returns:
            What `step` returns, with rows for these environments only.

        Raises:
            ValueError: environments that reset themselves, or actions of another shape.
        """
        require_no_autoreset(self.metadata["autoreset_mode"])
        return self._move(indices, actions)

    def _move(
        self, indices: np.ndarray | None, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step some robots, or all; the sums are those of Gymnasium's `step`, term by term."""
        rows = slice(None) if indices is None else indices
        actions = np.ascontiguousarray(actions)  # so that costs are added up in the order of a single environment
        expected = (self.num_envs if indices is None else len(indices), self._controls.shape[1])
        if actions.shape != expected:
            raise ValueError(f"actions: expected shape {list(expected)}, got {list(actions.shape)}")
        single = self._single
        x_before = self._positions[rows, 0].copy()
        self._controls[rows] = actions
        self._batch.step(indices, nstep=single.frame_skip)
        self._episode_steps[rows] += 1
        positions, velocities = self._positions[rows], self._velocities[rows]

        x_velocity = (positions[:, 0] - x_before) / single.dt
        forward = single._forward_reward_weight * self._pay(x_velocity)
        cost = single._ctrl_cost_weight * np.square(actions).sum(axis=1)
        parts = {"forward": forward, "ctrl": -cost}
        terminations = np.zeros(len(actions), dtype=bool)
        if hasattr(single, "_healthy_reward"):
            healthy, ends = self._find_healthy(positions, velocities), single._terminate_when_unhealthy
            paid = healthy | bool(ends) if self.version == 4 else healthy
            parts["survive"] = paid * single._healthy_reward
            rewards = forward + parts["survive"] - cost
            if ends:
                terminations = ~healthy
        else:
            rewards = forward - cost
        limit = np.inf if self.max_episode_steps is None else self.max_episode_steps
        truncations = self._episode_steps[rows] >= limit
        infos = {**self._place_infos(positions), "x_velocity": x_velocity, **self._name_rewards(parts)}
        return self._observe(positions, velocities), rewards, terminations, truncations, infos

    def _find_healthy(self, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Which robots stand upright, bool[num]."""
        single = self._single
        ranges = [(positions[:, 1], single._healthy_z_range), (positions[:, 2], single._healthy_angle_range)]
        healthy = np.logical_and.reduce([(low < values) & (values < high) for values, (low, high) in ranges])
        if hasattr(single, "_healthy_state_range"):
            low, high = single._healthy_state_range
            for values in (positions[:, 2:], velocities):
                healthy &= ((low < values) & (values < high)).all(axis=1)
        return healthy

    def _observe(self, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Observations float64[num, observation_dim]."""
        clipped = np.clip(velocities, -self.max_velocity, self.max_velocity)
        return np.concatenate([positions[:, self._first_position :], clipped], axis=1)

    def _pay(self, x_velocity: np.ndarray) -> np.ndarray:
        """What speeds are worth."""
        return x_velocity

    def _place_infos(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Infos that tell where robots are."""
        return {"x_position": positions[:, 0].copy()}

    def _name_rewards(self, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parts of the reward as infos."""
        return {f"reward_{name}": values for name, values in parts.items()}


class _StandingVectorEnv(LocomotionVectorEnv):
    """A robot that may fall."""

    def _place_infos(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        infos = super()._place_infos(positions)
        if self.version == 5:
            infos["z_distance_from_origin"] = positions[:, 1] - self._single.init_qpos[1]
        return infos

    def _name_rewards(self, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {} if self.version == 4 else super()._name_rewards(parts)


class HopperV4VectorEnv(_StandingVectorEnv):
    """A batch of Gymnasium's `Hopper-v4`."""

    single_class, version = HopperV4Env, 4


class HopperV5VectorEnv(_StandingVectorEnv):
    """A batch of Gymnasium's `Hopper-v5`."""

    single_class, version = HopperV5Env, 5


class Walker2dV4VectorEnv(_StandingVectorEnv):
    """A batch of Gymnasium's `Walker2d-v4`."""

    single_class, version = Walker2dV4Env, 4


class Walker2dV5VectorEnv(_StandingVectorEnv):
    """A batch of Gymnasium's `Walker2d-v5`."""

    single_class, version = Walker2dV5Env, 5


class _HalfCheetahVectorEnv(LocomotionVectorEnv):
    """A robot that cannot fall, and whose velocities are observed as they are."""

    max_velocity = np.inf

    def _pay(self, x_velocity: np.ndarray) -> np.ndarray:
        return _pay_speed(x_velocity, self._single.target_speed)

    def _name_rewards(self, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {"forward": "reward_run"} if self.version == 4 else {}
        return {names.get(name, f"reward_{name}"): values for name, values in parts.items()}


class HalfCheetahV4VectorEnv(_HalfCheetahVectorEnv):
    """A batch of Gymnasium's `HalfCheetah-v4`."""

    single_class, version = HalfCheetahV4Env, 4


class HalfCheetahV5VectorEnv(_HalfCheetahVectorEnv):
    """A batch of Gymnasium's `HalfCheetah-v5`."""

    single_class, version = HalfCheetahV5Env, 5
