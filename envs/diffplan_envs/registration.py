"""Names under which Gymnasium knows our environments.

`diffplan/Maze2D-<Maze>[-Dense]-v1` keeps the goal fixed, `diffplan/Multi2D-<Maze>[-Dense]-v1` redraws it at each reset;
`<Maze>` is Open, UMaze, Medium, Large, Eval-UMaze, Eval-Medium or Eval-Large. `diffplan/Maze2D-v1` and
`diffplan/Multi2D-v1` take any `maze=` (episodes end after 800 steps unless `max_episode_steps` is given).

`diffplan/StackUnconditional-v1`, `StackConditional-v1` and `StackRearrange-v1` are block stacking by a robot arm, with
a whole move as a step; `-Fine-v1` has steps of 0.05 s. See `diffplan_envs.stacking`.

`diffplan/<Robot>-v4` and `-v5` are Gymnasium's Hopper, Walker2d and HalfCheetah; see `diffplan_envs.locomotion`.
"""

import gymnasium

from diffplan_envs.maze import MAZE_TASKS

_DEFAULT_MAX_EPISODE_STEPS = 800
_ROBOTS = ("Hopper", "Walker2d", "HalfCheetah")
_ROBOT_EPISODE_STEPS = 1000
_STACKING_STEPS = 96
"""12 placements; most episodes have time for fewer."""


def register_envs() -> None:
    """Register every environment of this package; registering again changes nothing."""
    for family, redraw_goal in (("Maze2D", False), ("Multi2D", True)):
        _register_maze(f"diffplan/{family}-v1", _DEFAULT_MAX_EPISODE_STEPS, redraw_goal=redraw_goal)
        for name, task in MAZE_TASKS.items():
            title = "-".join("UMaze" if word == "umaze" else word.capitalize() for word in name.split("-"))
            for reward_type, suffix in (("sparse", ""), ("dense", "-Dense")):
                _register_maze(
                    f"diffplan/{family}-{title}{suffix}-v1",
                    task.max_episode_steps,
                    maze=name,
                    reward_type=reward_type,
                    redraw_goal=redraw_goal,
                )
    for robot in _ROBOTS:
        for version in (4, 5):
            single = f"diffplan_envs.locomotion:{robot}V{version}Env"
            batch = f"diffplan_envs.locomotion:{robot}V{version}VectorEnv"
            _register(f"diffplan/{robot}-v{version}", single, batch, _ROBOT_EPISODE_STEPS)
    for name, kind in (("Unconditional", "unconditional"), ("Conditional", "conditional"), ("Rearrange", "rearrange")):
        single, batch = "diffplan_envs.stacking:StackingEnv", "diffplan_envs.stacking:StackingVectorEnv"
        _register(f"diffplan/Stack{name}-v1", single, batch, _STACKING_STEPS, kind=kind)
        _register(f"diffplan/Stack{name}-Fine-v1", single, batch, 40 * _STACKING_STEPS, kind=kind, move_steps=1)


def _register_maze(env_id: str, max_episode_steps: int, **kwargs: object) -> None:
    batch = "diffplan_envs.maze2d_vector:Maze2DVectorEnv"
    _register(env_id, "diffplan_envs.maze2d:Maze2DEnv", batch, max_episode_steps, **kwargs)


def _register(env_id: str, single: str, batch: str, max_episode_steps: int, **kwargs: object) -> None:
    if env_id in gymnasium.registry:
        return
    gymnasium.register(
        env_id, entry_point=single, vector_entry_point=batch, max_episode_steps=max_episode_steps, kwargs=kwargs
    )
