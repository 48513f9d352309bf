"""Maze2D and Multi2D of D4RL: a ball with momentum in a maze, led to a goal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplan.config import EnvConfig
from diffplan.tasks.maze2d.environment import complete_env, get_reference_returns, refuse_way
from diffplan.tasks.maze2d.metrics import METRICS, measure
from diffplan.tasks.maze2d.policies import BEHAVIORS, POLICIES
from diffplan.tasks.maze2d.presets import PRESETS
from diffplan.tasks.maze2d.published import get_published_scores
from diffplan.tasks.maze2d.studies import STUDIES
from diffplan.tasks.task import Protocol, Task

if TYPE_CHECKING:
    from diffplan.tasks.contracts import Figures
    from diffplan.tasks.table import Table


def _make_figures(env: EnvConfig) -> Figures:
    from diffplan.tasks.maze2d.figures import make_figures

    return make_figures(env)


def _draw_text_map(*arguments: Any) -> list[str] | None:
    from diffplan.tasks.maze2d.text_map import draw_text_map

    return draw_text_map(*arguments)


def _make_frame(env_spec: str | None) -> Any:
    from diffplan.tasks.maze2d.frames import make_frame

    return make_frame(env_spec)


def _make_table() -> Table:
    from diffplan.tasks.maze2d.table import Maze2DTable

    return Maze2DTable()


TASK = Task(
    name="maze2d",
    description="Maze2D and Multi2D of D4RL: a ball in a maze, led to a goal",
    env_ids=("diffplan/Maze2D-*", "diffplan/Multi2D-*"),
    presets=PRESETS,
    complete_env=complete_env,
    protocols={
        "maze2d": Protocol(title="Maze2D", note="one fixed goal", env_kwargs={"redraw_goal": False}),
        "multi2d": Protocol(title="Multi2D", note="a new goal for each episode", env_kwargs={"redraw_goal": True}),
    },
    behaviors=BEHAVIORS,
    policies=POLICIES,
    metrics=METRICS,
    measure=measure,
    objective="score_less_misses",
    references=get_reference_returns,
    published=get_published_scores,
    refuse_way=refuse_way,
    figures=_make_figures,
    text_map=_draw_text_map,
    studies=STUDIES,
    table=_make_table,
    pretrained=Path(__file__).parent / "pretrained",
    frames={"maze2d": _make_frame},
)
"""Maze2D keeps the goal of D4RL, Multi2D draws one per episode."""
