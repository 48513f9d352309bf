"""Locomotion of D4RL: Hopper, Walker2d and HalfCheetah."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffplan.tasks.locomotion.asking import ask_for_speed
from diffplan.tasks.locomotion.environment import complete_env, get_reference_returns
from diffplan.tasks.locomotion.metrics import METRICS, measure
from diffplan.tasks.locomotion.presets import DATASETS, PRESETS, SPEEDS
from diffplan.tasks.locomotion.published import get_published_scores
from diffplan.tasks.locomotion.studies import STUDIES
from diffplan.tasks.task import Protocol, Task

if TYPE_CHECKING:
    from diffplan.tasks.table import Table


def _make_table() -> Table:
    from diffplan.tasks.locomotion.table import LocomotionTable

    return LocomotionTable()


_ROBOTS = ("Hopper", "Walker2d", "HalfCheetah")

TASK = Task(
    name="locomotion",
    description="locomotion of D4RL: Hopper, Walker2d, HalfCheetah",
    env_ids=tuple(f"{namespace}{robot}-v*" for namespace in ("", "diffplan/") for robot in _ROBOTS),
    presets=PRESETS,
    complete_env=complete_env,
    trained_policies=Path(__file__).parent / "policies",
    protocols={
        **{name: Protocol(title=name, note=f"a planner trained on {name} data", names_data=True) for name in DATASETS},
        **{
            f"speed-{speed}": Protocol(
                title=f"run at {speed} m/s",
                note="a planner trained on data of many speeds",
                env_kwargs={"target_speed": float(speed)},
                names_data=True,
                env_ids=("*HalfCheetah-v*",),
            )
            for speed in SPEEDS
        },
    },
    ask=ask_for_speed,
    metrics=METRICS,
    measure=measure,
    objective="score",
    references=get_reference_returns,
    published=get_published_scores,
    studies=STUDIES,
    table=_make_table,
    pretrained=Path(__file__).parent / "pretrained",
)
"""A protocol names the data that a planner was trained on. Those with a speed pay minus the distance from it."""
