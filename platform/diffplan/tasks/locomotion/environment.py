"""What this family knows of its robots: Gymnasium's, v4 and v5, by their own ids and by those of our batches."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from diffplan.config import EnvConfig
from diffplan.environments import find_episode_limit

EPISODE_STEPS = 1000
"""The episode limit of D4RL."""
_ID = re.compile(r"(?:diffplan/)?(Hopper|Walker2d|HalfCheetah)-v([45])")
_KWARGS_OF_NO_WEIGHT = {
    "exclude_current_positions_from_observation",
    "max_episode_steps",
    "num_threads",
    "render_mode",
    "width",
    "height",
    "camera_id",
    "camera_name",
    "default_camera_config",
    "max_geom",
    "visual_options",
}
"""Arguments that change neither where episodes start and end nor what they pay."""


@dataclass(frozen=True)
class Robot:
    """A robot of Gymnasium.

    Attributes:
        name: its name, in lower case, as in the names of D4RL's data.
        version: 4 or 5.
    """

    name: str
    version: int

    @property
    def physics_seconds(self) -> float:
        """Seconds of a step of the physics."""
        return _PHYSICS[self.name][0]

    @property
    def frame_skip(self) -> int:
        """Steps of the physics in a step of the environment, unless an argument says otherwise."""
        return _PHYSICS[self.name][1]

    @property
    def reference_returns(self) -> tuple[float, float]:
        """D4RL's returns of a random policy and of the expert."""
        return _REFERENCE_RETURNS[self.name]


_PHYSICS = {"hopper": (0.002, 4), "walker2d": (0.002, 4), "halfcheetah": (0.01, 5)}
_REFERENCE_RETURNS = {
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "halfcheetah": (-280.178953, 12135.0),
}
"""Source: D4RL, `d4rl/infos.py`."""


def find_robot(env: EnvConfig) -> Robot | None:
    """The robot of an environment; None for another environment or an older version."""
    found = _ID.fullmatch(env.env_id)
    return Robot(found[1].lower(), int(found[2])) if found else None


def find_benchmark_robot(env: EnvConfig) -> Robot | None:
    """The robot of an environment with the episodes and the reward of D4RL; None if there is none.

    An environment with an argument that could change the start, the reward or the end of an episode is another one.
    """
    robot = find_robot(env)
    if robot is None or set(env.env_kwargs) - _KWARGS_OF_NO_WEIGHT or find_episode_limit(env) != EPISODE_STEPS:
        return None
    return robot


def complete_env(env: EnvConfig) -> EnvConfig:
    """An environment of this family with the seconds of a step, unless they are given or its model is another one.

    The robots run forward without a target, so there are no position columns and no goals.
    """
    robot = find_robot(env)
    if robot is None or env.step_seconds is not None or "xml_file" in env.env_kwargs:
        return env
    return replace(env, step_seconds=robot.physics_seconds * env.env_kwargs.get("frame_skip", robot.frame_skip))


def get_reference_returns(env: EnvConfig) -> tuple[float, float] | None:
    """D4RL's returns of a random policy and of the expert; None for other rules than D4RL's.

    D4RL's data and returns are those of v4; v5 is scored with the same references. Returns of HalfCheetah are equal.
    Those of Hopper and Walker2d are smaller by 1 in v5 where the robot falls, for v5 does not pay the step of the fall:
    0.03 and 0.02 points. The right foot of Walker2d has more friction in v5, so v4 and v5 are two robots there.
    """
    robot = find_benchmark_robot(env)
    return None if robot is None else robot.reference_returns
