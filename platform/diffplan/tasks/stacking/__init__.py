"""Block stacking by a robot arm. So far this task has only presets."""

from diffplan.tasks.stacking.presets import PRESETS
from diffplan.tasks.task import Task

TASK = Task(
    name="stacking",
    description="block stacking by a robot arm",
    env_ids=("diffplan/Stack*",),
    presets=PRESETS,
)
