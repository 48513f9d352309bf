"""Locomotion of D4RL: Hopper, Walker2d and HalfCheetah. So far this task has only presets."""

from diffplan.tasks.locomotion.presets import PRESETS
from diffplan.tasks.task import Task

TASK = Task(
    name="locomotion",
    description="locomotion of D4RL: Hopper, Walker2d, HalfCheetah",
    env_ids=("Hopper-v*", "Walker2d-v*", "HalfCheetah-v*"),
    presets=PRESETS,
)
