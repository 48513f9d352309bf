"""Block stacking by a robot arm. Presets to train with; nothing else is known of it yet."""

from diffplan.tasks.stacking.presets import PRESETS
from diffplan.tasks.task import Task

TASK = Task(
    name="stacking",
    description="block stacking by a robot arm",
    env_ids=("diffplan/Stack*",),
    presets=PRESETS,
)
