"""Conditions of a network in training: for each window the return that follows it, or the number of its task.

A return is the undiscounted sum of the rewards from the window's first step to the end of its episode, so it depends on
the number of remaining steps. With steady rewards, windows late in an episode have low returns, however good they are,
and a high target return in planning asks for the behavior of good episodes near their start. Returns are normalised
from a fixed range to 0 to 1; those of a few windows are outside.

Conditions are randomly withheld (NaN), so that the network also learns to predict without.
Source: Ho and Salimans 2022, Alg. 1; Ajay et al. 2023 (Decision Diffuser), section 3.2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffplan.config import Config, NetworkConfig
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.shard_reader import ShardReader
from diffplan.data.windows.conditions import Conditions, WindowBatch
from diffplan.data.windows.returns import compute_returns_to_go
from diffplan.errors import ConfigError, DataError

MAX_RETURN_ROWS = 2**24
"""Most steps whose rewards are read for the range of the returns, in whole episodes."""
_RANGE_QUANTILES = (0.005, 0.995)
_MIN_RELATIVE_WIDTH = 1e-6


def check_condition(network: NetworkConfig, dataset: TrajectoryDataset) -> None:
    """Raise unless a dataset has the condition of a network.

    Raises:
        DataError: it has no tasks.
        ConfigError: it has more tasks than the network.
    """
    if network.condition != "task":
        return
    num_tasks = len(dataset.manifest.tasks)
    if not num_tasks:
        raise DataError(
            f"{dataset.uri}: network.condition task: expected a dataset of several tasks, got one without; make one "
            "with `diffplan data merge`"
        )
    if num_tasks > network.num_tasks:
        raise ConfigError(
            f"network.num_tasks: expected at least {num_tasks}, the tasks of {dataset.uri}, got {network.num_tasks}"
        )


def make_reader_conditions(config: Config) -> Conditions:
    """The conditions that readers return with the windows for a diffuser; they always return task numbers.

    Returns that condition a network are not discounted; those that only weight its loss are.
    """
    if config.network.condition == "returns":
        return Conditions(returns_to_go=True)
    training = config.training
    if training.return_weight:
        return Conditions(
            returns_to_go=True, discount=training.discount, termination_penalty=training.termination_penalty
        )
    return Conditions()


def fit_return_range(
    dataset: TrajectoryDataset, conditions: Conditions, *, verify: bool = False
) -> tuple[float, float]:
    """The returns that are normalised to 0 and to 1; they depend on the dataset alone.

    They are the 0.5 % and 99.5 % quantiles of the returns from all steps; in large datasets, of the steps of the first
    episodes. If most returns are equal, they are the lowest and the highest; if all are equal, the range has width 1
    around them.

    Args:
        dataset: the data.
        conditions: discount of the returns, and what a termination takes from them.
        verify: compare the rewards with their checksums.

    Raises:
        DataError: a shard is gone or damaged.
    """
    episodes = dataset.episodes
    num_episodes = max(int(np.searchsorted(np.cumsum(episodes.length), MAX_RETURN_ROWS, side="right")), 1)
    lengths = episodes.length[:num_episodes]
    reader = ShardReader(dataset.store, dataset.manifest, verify=verify)
    rewards: list[np.ndarray] = []
    missing = int(lengths.sum())
    for shard, first, count in dataset.iterate_runs():
        if missing <= 0:
            break
        rewards.append(reader.read_rows(shard, "reward", first, min(count, missing))[:, 0])
        missing -= count
    returns = compute_returns_to_go(
        np.concatenate(rewards),
        lengths,
        conditions.discount,
        episodes.column("terminated")[:num_episodes],
        conditions.termination_penalty,
    )
    low, high = (float(value) for value in np.quantile(returns.astype(np.float64), _RANGE_QUANTILES))
    if _is_narrow(low, high):
        low, high = float(returns.min()), float(returns.max())
    if _is_narrow(low, high):
        center = (low + high) / 2
        half = max(0.5, _MIN_RELATIVE_WIDTH * abs(center))
        low, high = center - half, center + half
    return low, high


def make_condition(
    network: NetworkConfig, batch: WindowBatch, return_range: tuple[float, float] | None, withheld: Tensor
) -> Tensor | None:
    """The condition of each window.

    Args:
        network: names the kind of condition.
        batch: the windows.
        return_range: returns that are normalised to 0 and to 1, if the condition is a return.
        withheld: windows whose condition is withheld, bool[windows].

    Returns:
        float32[windows], NaN where it is withheld; None for a network without a condition.
    """
    if network.condition == "none":
        return None
    if network.condition == "returns":
        assert batch.returns_to_go is not None
        assert return_range is not None
        low, high = return_range
        told = (batch.returns_to_go - low) / (high - low)
    else:
        assert batch.task is not None
        told = batch.task.to(torch.float32)
    return torch.where(withheld.to(told.device), torch.nan, told)


def _is_narrow(low: float, high: float) -> bool:
    return high - low <= _MIN_RELATIVE_WIDTH * max(abs(low), abs(high))
