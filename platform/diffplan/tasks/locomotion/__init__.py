"""Locomotion of D4RL: Hopper, Walker2d and HalfCheetah. Presets to train with; nothing else is known of it yet."""

from diffplan.tasks.locomotion.presets import PRESETS
from diffplan.tasks.task import Task

TASK = Task(
    name="locomotion",
    description="locomotion of D4RL: Hopper, Walker2d, HalfCheetah",
    env_ids=("Hopper-v*", "Walker2d-v*", "HalfCheetah-v*"),
    presets=PRESETS,
)
