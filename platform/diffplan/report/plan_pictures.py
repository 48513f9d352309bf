"""Plans for a few problems that the task chooses, side by side: what TensorBoard shows while a model is trained."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from diffplan.data.dataset import TrajectoryDataset
from diffplan.planning.calibration import longest_horizon, read_windows
from diffplan.planning.planner import Planner
from diffplan.tasks.registry import make_experiment_figures

WINDOWS_PER_PROBLEM = 4
"""Windows of the data that the task has for each problem to choose from."""


def draw_sampled_plans(
    planner: Planner, dataset: TrajectoryDataset, num: int, generator: np.random.Generator
) -> Figure:
    """Plan for problems in the data, and draw the plans.

    Args:
        planner: makes the plans; its noise is the same every time.
        dataset: where the problems come from.
        num: how many.
        generator: chooses among the windows of the data.
    """
    config = planner.config
    figures = make_experiment_figures(config)
    windows = read_windows(dataset, config, longest_horizon(dataset, config), WINDOWS_PER_PROBLEM * num, generator)
    observations, goals = figures.choose_problems(windows, num, np.random.default_rng(0))
    return figures.draw_plans(planner.plan(observations, goals, torch.Generator().manual_seed(0)), goals)
