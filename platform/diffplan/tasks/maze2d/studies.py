"""Studies of this family: how bold plans are, and how the ball follows them."""

from __future__ import annotations

from diffplan.config.study import Among, Between, Scaled, Study

PLAN_COST = 50.0
"""Weight of a second of planning in the study `pareto`, in points of the score. If the ball of Maze2D-UMaze waited for
its plans, a second would cost 100 steps, each worth 0.72 points at the goal."""

# Horizons are not searched: with a horizon model the finest multiple costs nothing, while a search of a few dozen
# trials may pick a coarse one by chance, which costs time when the goal is near.
_SEARCHED: dict[str, Between | Among | Scaled] = {
    "planning.guidance.scale": Between(low=0.0, high=10.0),
    "planning.horizon.max_speed_error": Between(low=4.0, high=12.0),
    "planning.horizon.max_departure": Between(low=0.1, high=0.4),
    "planning.sampling.num_steps": Among(among=(4, 8, 16)),
    "planning.selection.num_candidates": Among(among=(1, 2, 4)),
}

STUDIES: dict[str, Study] = {
    "planner": Study(
        description="how plans are made: how bold, denoising steps, candidates, guide",
        vary=_SEARCHED,
    ),
    "controller": Study(
        description="how plans are followed: gains of the controller, and when to plan again",
        vary={
            "planning.controller.position_gain": Between(low=3.0, high=30.0, log=True),
            "planning.controller.velocity_gain": Between(low=0.3, high=6.0, log=True),
            "planning.replanning.max_deviation": Between(low=0.1, high=1.5),
            "planning.controller.max_lag": Among(among=(0.0, 0.3, 0.5, 0.7, 0.9)),
            "planning.controller.interpolation": Among(among=("linear", "hermite")),
            "planning.replanning.interval": Among(among=(0, 20, 50, 100)),
        },
        num_trials=24,
    ),
    "thorough": Study(
        description="the best score, whatever the time: how plans are made and how they are followed",
        vary={
            **_SEARCHED,
            "planning.sampling.num_steps": Among(among=(4, 8)),
            "planning.selection.num_candidates": Among(among=(1, 2)),
            "planning.controller.pace": Between(low=1.0, high=2.5),
            "planning.replanning.max_deviation": Between(low=0.8, high=1.6),
            "planning.controller.max_lag": Among(among=(0.0, 0.5, 0.7, 0.9, 1.1)),
            "planning.replanning.interval": Among(among=(0, 50)),
            "planning.controller.position_gain": Between(low=3.0, high=30.0, log=True),
            "planning.controller.velocity_gain": Between(low=0.3, high=6.0, log=True),
        },
        num_trials=32,
    ),
    "pareto": Study(
        description="the score against the time to plan: what each millisecond buys",
        vary={
            **_SEARCHED,
            "planning.horizon.multiple": Among(among=(1, 2, 4)),
            "planning.sampling.num_steps": Among(among=(1, 2, 4, 8, 16)),
            "planning.horizon.rule": Among(among=("auto", "scan")),
            "planning.replanning.interval": Among(among=(0, 20, 50, 100)),
            "planning.controller.position_gain": Between(low=3.0, high=30.0, log=True),
            "planning.controller.velocity_gain": Between(low=0.3, high=6.0, log=True),
        },
        objectives=("score_mean", "plan_seconds"),
        cost_weight=PLAN_COST,
        num_trials=48,
    ),
    "training": Study(
        description="what is trained: horizon, stride, width, what the network predicts",
        kind="training",
        vary={
            "windows.max_horizon": Scaled(shares=(0.75, 1.0, 1.25), also=("planning.horizon.max",)),
            "windows.stride": Among(among=(3, 5, 8, 10)),
            "network.dim": Scaled(shares=(0.5, 1.0, 1.5), multiple=8),
            "diffusion.prediction": Among(among=("clean", "noise", "velocity")),
            "planning.horizon.max_speed_error": Between(low=4.0, high=12.0),
        },
        num_trials=24,
    ),
}
"""By name; the first is the default one."""
