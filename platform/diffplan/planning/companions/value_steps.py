"""The steps of a dataset that a value is fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffplan.config import Config
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.windows.returns import compute_returns_to_go
from diffplan.errors import DataError
from diffplan.planning.companions.value_model import ValueModel

MAX_STEPS = 2**22
"""Most environment steps that a value is fitted to, in whole episodes: they are kept in memory."""
TEST_SHARE = 0.1
"""Share of the episodes that is held out to measure errors."""
NUM_MEASURED_STEPS = 20_000
"""Steps that errors and scales are measured on."""
_RELATIVE_ROUNDING = 1e-6


@dataclass(frozen=True)
class ValueSteps:
    """All environment steps of the data, in environment units; those of an episode follow each other.

    Attributes:
        observations: float32[steps + episodes, observation_dim]: those of each episode, with its final one.
        actions: float32[steps, action_dim].
        rewards: float32[steps], less the penalty of a termination.
        returns: discounted return from each step on in the data, float32[steps]; a truncated episode is assumed to go
            on with the mean reward.
        places: row of `observations` that each step begins with, int64[steps].
        remaining: steps to the end of the episode, including this one, int64[steps].
        terminates: whether the episode of each step terminated, bool[steps].
        plan_rewards: discounted sum of the rewards of a plan step from here on, float32[steps].
        num_ahead: rewards in the target of a value.
        ahead_rewards: discounted sum of the next `num_ahead` rewards, float32[steps].
        window_rewards: discounted sum of the rewards within a plan of one horizon, float32[steps]; empty without one.
        offsets: environment steps from the first step of such a plan to each of the others; None without one.
        window_rows: training rows that such a plan begins at, int64[rows].
        terminal_places: rows of `observations` at which training episodes terminated, int64[episodes].
        stride: environment steps of a plan step.
        discount: of an environment step.
        training_rows: steps to fit to, int64[rows].
        test_rows: steps that are held out.
        training_plan_rows: training rows that are followed by a whole plan step, or by a termination within it.
        test_plan_rows: the same for the rows held out.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    returns: Tensor
    places: Tensor
    remaining: Tensor
    terminates: Tensor
    plan_rewards: Tensor
    num_ahead: int
    ahead_rewards: Tensor
    window_rewards: Tensor
    offsets: tuple[int, ...] | None
    window_rows: Tensor
    terminal_places: Tensor
    stride: int
    discount: float
    training_rows: Tensor
    test_rows: Tensor
    training_plan_rows: Tensor
    test_plan_rows: Tensor

    @classmethod
    def read(
        cls,
        dataset: TrajectoryDataset,
        config: Config,
        generator: np.random.Generator,
        num_ahead: int,
        *,
        whole_plans: bool,
    ) -> ValueSteps:
        """Read whole episodes; a random subset if they are too many."""
        order = np.arange(len(dataset.episodes))
        if dataset.num_steps > MAX_STEPS:
            order = np.sort(_draw_up_to(dataset.episodes.length.astype(np.int64), MAX_STEPS, generator))
        lengths = dataset.episodes.length[order].astype(np.int64)
        terminated = dataset.episodes.column("terminated")[order].astype(bool)
        observations, actions, rewards = (
            np.concatenate([dataset.episode_column(int(i), name) for i in order]).astype(np.float32)
            for name in ("observation", "action", "reward")
        )
        finals = dataset.episodes.final_observations[order].astype(np.float32)
        num, episode = len(rewards), np.repeat(np.arange(len(order)), lengths)
        ends = np.cumsum(lengths)
        places = np.arange(num) + episode
        whole = np.empty((num + len(order), observations.shape[1]), dtype=np.float32)
        whole[places] = observations
        whole[ends + np.arange(len(order))] = finals
        windows, discount = config.windows, config.training.discount
        stride = windows.stride if windows.offsets is None else 1
        offsets = windows.offsets if whole_plans else None
        if whole_plans and offsets is None:
            offsets = tuple(windows.stride * step for step in range(1, windows.max_horizon))
        rewards[ends[terminated] - 1] -= config.training.termination_penalty
        remaining = ends[episode] - np.arange(num)
        returns = compute_returns_to_go(rewards, lengths, discount)
        if discount < 1:
            goes_on = ~terminated[episode]
            returns = returns + goes_on * discount**remaining * rewards.mean(dtype=np.float64) / (1 - discount)
        held_out = _hold_out(len(order), generator)[episode]
        is_plan_step = (remaining >= stride) | terminated[episode]
        if not is_plan_step[~held_out].any():
            raise DataError(
                f"{dataset.uri}: expected an episode of at least {stride} steps, windows.stride, got "
                f"{int(lengths.max())} at most; take a smaller stride"
            )

        def rows(mask: np.ndarray) -> Tensor:
            return torch.from_numpy(np.flatnonzero(mask))

        return cls(
            observations=torch.from_numpy(whole),
            actions=torch.from_numpy(actions),
            rewards=torch.from_numpy(rewards),
            returns=torch.from_numpy(returns.astype(np.float32)),
            places=torch.from_numpy(places),
            remaining=torch.from_numpy(remaining),
            terminates=torch.from_numpy(terminated[episode]),
            plan_rewards=torch.from_numpy(_sum_ahead(rewards, remaining, stride, discount)),
            num_ahead=num_ahead,
            ahead_rewards=torch.from_numpy(_sum_ahead(rewards, remaining, num_ahead, discount)),
            window_rewards=torch.from_numpy(
                _sum_ahead(rewards, remaining, offsets[-1], discount) if offsets else np.zeros(0, np.float32)
            ),
            offsets=offsets,
            window_rows=rows(~held_out & ((remaining >= (offsets or (1,))[-1]) | terminated[episode])),
            terminal_places=torch.from_numpy((places + 1)[(remaining == 1) & terminated[episode] & ~held_out]),
            stride=stride,
            discount=discount,
            training_rows=rows(~held_out),
            test_rows=rows(held_out) if held_out.any() else rows(~held_out),
            training_plan_rows=rows(is_plan_step & ~held_out),
            test_plan_rows=rows(is_plan_step & held_out)
            if (is_plan_step & held_out).any()
            else rows(is_plan_step & ~held_out),
        )

    def measure(self, model: ValueModel) -> None:
        """Set the scales of a model from the data."""
        training = self.training_rows
        observations = self.observations[self.places[training]]
        changes = self.get_ends(self.training_plan_rows) - self.observations[self.places[self.training_plan_rows]]
        for name, values in (
            ("observation", observations),
            ("action", self.actions[training]),
            ("reward", self.plan_rewards[self.training_plan_rows]),
            ("value", self.returns[training]),
        ):
            getattr(model, f"{name}_center").copy_(values.double().mean(dim=0))
            getattr(model, f"{name}_scale").copy_(find_scale(values))
        model.change_scale.copy_(find_scale(changes))
        if self.offsets is not None and len(self.window_rows):
            rows = self.window_rows[:: max(len(self.window_rows) // NUM_MEASURED_STEPS, 1)]
            windows, _ = self.get_windows(rows)
            of_plans = windows[:, 1:] - windows[:, :1]
            model.plan_change_center.copy_(of_plans.double().mean(dim=0))
            model.plan_change_scale.copy_(find_scale(of_plans))

    def draw(self, rows: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Draw some of the rows, with replacement."""
        return rows[torch.randint(len(rows), (num,), generator=generator)]

    def get_ends(self, rows: Tensor) -> Tensor:
        """Observations after a plan step, or the final ones of episodes that end earlier."""
        return self.observations[self.places[rows] + self.remaining[rows].clamp(max=self.stride)]

    def get_windows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Observations of plans of one horizon, float32[rows, horizon, observation_dim], and their flags.

        After its end an episode stays at its last observation.
        """
        assert self.offsets is not None
        offsets = torch.tensor([0, *self.offsets])
        remaining = self.remaining[rows][:, None]
        places = self.places[rows][:, None] + torch.minimum(remaining, offsets)
        is_over = self.terminates[rows][:, None] & (remaining <= offsets)
        return self.observations[places], torch.where(is_over, -1.0, 1.0)

    def ends_within(self, rows: Tensor) -> Tensor:
        """Whether an episode terminates within a plan step, bool[rows]."""
        return self.terminates[rows] & (self.remaining[rows] <= self.stride)


def find_scale(values: Tensor) -> Tensor:
    """Standard deviations over the rows; 1 where all are the same."""
    values = values.double()
    scale = values.std(dim=0, correction=0)
    return torch.where(scale > _RELATIVE_ROUNDING * values.abs().amax(dim=0).clamp(min=1.0), scale, 1.0)


def _sum_ahead(rewards: np.ndarray, remaining: np.ndarray, stride: int, discount: float) -> np.ndarray:
    """Discounted sums of the next `stride` rewards of each step, fewer at the end of an episode, float32[steps]."""
    total = np.zeros(len(rewards))
    for ahead in range(stride):
        rows = np.flatnonzero(remaining > ahead)
        total[rows] += discount**ahead * rewards[rows + ahead]
    return total.astype(np.float32)


def _draw_up_to(lengths: np.ndarray, max_steps: int, generator: np.random.Generator) -> np.ndarray:
    """Random episodes with at most `max_steps` steps in total, but at least one episode."""
    order = generator.permutation(len(lengths))
    return order[: max(int(np.searchsorted(np.cumsum(lengths[order]), max_steps, side="right")), 1)]


def _hold_out(num_episodes: int, generator: np.random.Generator) -> np.ndarray:
    """Which episodes are held out, bool[episodes]; none where there is only one."""
    if num_episodes < 2:
        return np.zeros(num_episodes, dtype=bool)
    numbers = generator.random(num_episodes)
    held_out = numbers < TEST_SHARE
    held_out[numbers.argmin()], held_out[numbers.argmax()] = True, False
    return held_out
