"""Names under which Gymnasium knows our environments.

`diffplan/Maze2D-<Maze>[-Dense]-v1` keeps the goal fixed, `diffplan/Multi2D-<Maze>[-Dense]-v1` redraws it at each reset;
`<Maze>` is Open, UMaze, Medium, Large, Eval-UMaze, Eval-Medium or Eval-Large. `diffplan/Maze2D-v1` and
`diffplan/Multi2D-v1` take any `maze=` (episodes end after 800 steps unless `max_episode_steps` is given).
"""

import gymnasium

from diffplan_envs.maze import MAZE_TASKS

_DEFAULT_MAX_EPISODE_STEPS = 800


def register_envs() -> None:
    """Register every environment of this package; registering again changes nothing."""
    for family, redraw_goal in (("Maze2D", False), ("Multi2D", True)):
        _register(f"diffplan/{family}-v1", _DEFAULT_MAX_EPISODE_STEPS, redraw_goal=redraw_goal)
        for name, task in MAZE_TASKS.items():
            title = "-".join("UMaze" if word == "umaze" else word.capitalize() for word in name.split("-"))
            for reward_type, suffix in (("sparse", ""), ("dense", "-Dense")):
                _register(
                    f"diffplan/{family}-{title}{suffix}-v1",
                    task.max_episode_steps,
                    maze=name,
                    reward_type=reward_type,
                    redraw_goal=redraw_goal,
                )


def _register(env_id: str, max_episode_steps: int, **kwargs: object) -> None:
    if env_id in gymnasium.registry:
        return
    gymnasium.register(
        env_id,
        entry_point="diffplan_envs.maze2d:Maze2DEnv",
        vector_entry_point="diffplan_envs.maze2d_vector:Maze2DVectorEnv",
        max_episode_steps=max_episode_steps,
        kwargs=kwargs,
    )
