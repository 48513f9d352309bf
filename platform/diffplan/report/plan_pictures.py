"""Plans for a few problems that the task chooses, side by side; for TensorBoard during training."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.planning.calibration import longest_horizon, read_windows
from diffplan.planning.planner import Planner
from diffplan.tasks.registry import make_experiment_figures

WINDOWS_PER_PROBLEM = 4
"""Windows of the data for each problem, from which the task chooses."""


def draw_sampled_plans(
    planner: Planner, dataset: TrajectoryDataset, num: int, generator: np.random.Generator
) -> Figure:
    """Plan for problems in the data, and draw the plans.

    Args:
        planner: makes the plans; its noise is the same in every call.
        dataset: the source of the problems.
        num: number of problems.
        generator: draws the windows of the data.
    """
    config = planner.config
    figures = make_experiment_figures(config)
    windows = read_windows(dataset, config, longest_horizon(dataset, config), WINDOWS_PER_PROBLEM * num, generator)
    observations, goals = figures.choose_problems(windows, num, np.random.default_rng(0))
    return figures.draw_plans(planner.plan(observations, goals, torch.Generator().manual_seed(0)), goals)
