"""Fit a value model to a dataset.

Source: Kostrikov et al. 2021 (implicit Q-learning), section 4: the value of an observation is an expectile of the
values of the actions that the data took there, so that actions outside the data are never evaluated. Additions: the
fit begins with the returns in the data as targets, which may add up several rewards; terminal observations are pinned
to 0; and the reward and the termination of a plan step are learned too, with the value of whole plans of one horizon.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffplan.config import Config
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.windows.returns import compute_returns_to_go
from diffplan.errors import DataError
from diffplan.planning.companions.value_model import ValueModel
from diffplan.seeding import Stream, make_generator, make_seed

MIN_FIT_STEPS, MAX_FIT_STEPS, FIT_PASSES = 500, 5_000, 50
"""Limits of the default number of optimizer steps, which draws each environment step 50 times."""
MAX_STEPS = 2**22
"""Most environment steps that a value is fitted to, in whole episodes: they are kept in memory."""
WARM_START_SHARE = 0.2
"""Share of the fit in which the targets are returns from the data: bootstrapping then starts near the truth and needs
few steps to carry rewards over a whole episode."""
TARGET_RATE = 0.05
"""Rate at which the target networks follow the fitted ones (exponential moving average)."""
TERMINAL_WEIGHT = 0.1
"""Weight of the squared value of terminal observations in the loss."""
TEST_SHARE = 0.1
"""Share of the episodes that is held out to measure errors."""
_NUM_MEASURED_STEPS = 20_000
_NUM_WARM_UP_STEPS = 100
_MAX_GRADIENT_NORM = 10.0
_RELATIVE_ROUNDING = 1e-6


@dataclass(frozen=True)
class ValueErrors:
    """Errors of a value model on held-out episodes.

    Attributes:
        reward: root mean square error of the rewards of plan steps, relative to their standard deviation.
        value: root mean square difference between the value of an action and its target (the reward and the value of
            the next observation), relative to the standard deviation of values in the data.
    """

    reward: float
    value: float


def fit_value(
    dataset: TrajectoryDataset,
    config: Config,
    *,
    expectile: float = 0.9,
    num_ahead: int = 1,
    whole_plans: bool = False,
    num_steps: int | None = None,
    batch_size: int = 256,
    hidden_dim: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ValueModel, ValueErrors]:
    """Fit a value model.

    Terminal observations have value 0; truncated episodes are bootstrapped.

    Args:
        dataset: the data.
        config: the experiment: columns and stride of its plans, discount and penalty of its returns.
        expectile: the value of an observation is this expectile of the values of actions in the data: 0.5 for their
            mean, towards 1 for the best of them.
        num_ahead: rewards that a target adds up before the value of the observation after them. More than one carries
            rewards over an episode sooner, but the target is then the return of the data's actions and not of the best.
        whole_plans: also fit the value of whole plans, which must have one horizon.
        num_steps: optimizer steps; None to choose them by the size of the data.
        batch_size: environment steps, and also plan steps, in an optimizer step.
        hidden_dim: width of the networks.
        learning_rate: of Adam; decays to 0 as a cosine.
        seed: of everything random here.
        on_progress: called with the optimizer steps done and their total.

    Returns:
        The model in environment units, and its errors.

    Raises:
        ValueError: the expectile is not in (0, 1).
        DataError: no episode is long enough for a plan step.
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile: expected a number in (0, 1), got {expectile}")
    if num_ahead < 1:
        raise ValueError(f"num_ahead: expected at least 1, got {num_ahead}")
    if num_steps is None:
        num_steps = int(np.clip(FIT_PASSES * dataset.num_steps / batch_size, MIN_FIT_STEPS, MAX_FIT_STEPS))
    steps = _Steps.read(
        dataset, config, make_generator(seed, Stream.CALIBRATION, 3), num_ahead, whole_plans=whole_plans
    )
    has_actions = config.windows.columns == "actions_observations"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_seed(seed, Stream.CALIBRATION, 4))
        model = ValueModel(
            steps.observations.shape[1],
            steps.actions.shape[1],
            discount=config.training.discount,
            stride=steps.stride,
            judges_actions=has_actions,
            has_terminations=bool(steps.terminates.any()),
            offsets=steps.offsets,
            has_flags=config.windows.has_flag,
            hidden_dim=hidden_dim,
        )
    steps.measure(model)
    targets = copy.deepcopy(model.action_values).requires_grad_(False)
    parameters, target_parameters = list(model.action_values.parameters()), list(targets.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _decay(step, num_steps))
    generator = torch.Generator().manual_seed(make_seed(seed, Stream.CALIBRATION, 5))
    for step in range(1, num_steps + 1):
        rows = steps.draw(steps.training_rows, batch_size, generator)
        observations = model.normalize_observations(steps.observations[steps.places[rows]])
        inputs = model.join(observations, steps.actions[rows])
        with torch.no_grad():
            if step <= WARM_START_SHARE * num_steps:
                target = (steps.returns[rows] - model.value_center) / model.value_scale
            else:
                target = (_look_ahead(model, steps, rows) - model.value_center) / model.value_scale
            taken = torch.stack([network(inputs)[:, 0] for network in targets]).amin(dim=0)
        above = taken - model.value(observations)[:, 0]
        loss = (torch.where(above > 0, expectile, 1 - expectile) * above.square()).mean()
        for network in model.action_values:
            loss = loss + F.mse_loss(network(inputs)[:, 0], target)
        loss = loss + _outcome_loss(model, steps, steps.draw(steps.training_plan_rows, batch_size, generator))
        if len(steps.terminal_places):
            terminal = steps.observations[steps.draw(steps.terminal_places, batch_size // 8, generator)]
            pinned = model.value(model.normalize_observations(terminal))[:, 0] * model.value_scale + model.value_center
            loss = loss + TERMINAL_WEIGHT * (pinned / model.value_scale).square().mean()
        if steps.offsets is not None:
            is_early = step <= WARM_START_SHARE * num_steps
            loss = loss + _plan_loss(model, steps, steps.draw(steps.window_rows, batch_size, generator), is_early)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for slow, fast in zip(target_parameters, parameters, strict=True):
                slow.lerp_(fast, TARGET_RATE)
        if on_progress is not None and (step % 100 == 0 or step == num_steps):
            on_progress(step, num_steps)
    model.action_values.load_state_dict(targets.state_dict())
    model = model.requires_grad_(False).eval()
    rows = steps.draw(steps.training_rows, _NUM_MEASURED_STEPS, generator)
    observations, actions = steps.observations[steps.places[rows]], steps.actions[rows]
    advantages = model.compute_action_values(observations, actions) - model.compute_values(observations)
    model.advantage_scale.copy_(_find_scale(advantages))
    return model, _measure_errors(model, steps, generator)


@dataclass(frozen=True)
class _Steps:
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
    ) -> _Steps:
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
            getattr(model, f"{name}_scale").copy_(_find_scale(values))
        model.change_scale.copy_(_find_scale(changes))
        if self.offsets is not None and len(self.window_rows):
            rows = self.window_rows[:: max(len(self.window_rows) // _NUM_MEASURED_STEPS, 1)]
            windows, _ = self.get_windows(rows)
            of_plans = windows[:, 1:] - windows[:, :1]
            model.plan_change_center.copy_(of_plans.double().mean(dim=0))
            model.plan_change_scale.copy_(_find_scale(of_plans))

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


def _look_ahead(model: ValueModel, steps: _Steps, rows: Tensor) -> Tensor:
    """The next rewards and the discounted value of the observation after them, which is 0 if it is terminal."""
    num = steps.remaining[rows].clamp(max=steps.num_ahead)
    terminal = steps.terminates[rows] & (steps.remaining[rows] <= steps.num_ahead)
    following = model.compute_values(steps.observations[steps.places[rows] + num])
    return steps.ahead_rewards[rows] + steps.discount**num * following.masked_fill(terminal, 0.0)


def _plan_loss(model: ValueModel, steps: _Steps, rows: Tensor, is_early: bool) -> Tensor:
    """Error of the values of whole plans; early in the fit their targets are the returns in the data."""
    observations, flags = steps.get_windows(rows)
    if is_early:
        target = steps.returns[rows]
    else:
        assert steps.offsets is not None
        with torch.no_grad():
            last = model.compute_values(observations[:, -1]).masked_fill(flags[:, -1] < 0, 0.0)
        target = steps.window_rewards[rows] + steps.discount ** steps.offsets[-1] * last
    predicted = model.compute_plan_values(observations, flags if model.has_flags else None)
    return ((predicted - target) / model.value_scale).square().mean()


def _outcome_loss(model: ValueModel, steps: _Steps, rows: Tensor) -> Tensor:
    observations = steps.observations[steps.places[rows]]
    outputs = model.outcome(model.join_step(observations, steps.actions[rows], steps.get_ends(rows)))
    loss = F.mse_loss(outputs[:, 0], (steps.plan_rewards[rows] - model.reward_center) / model.reward_scale)
    if model.has_terminations:
        loss = loss + F.binary_cross_entropy_with_logits(outputs[:, 1], steps.ends_within(rows).float())
    return loss


@torch.no_grad()
def _measure_errors(model: ValueModel, steps: _Steps, generator: torch.Generator) -> ValueErrors:
    rows = steps.draw(steps.test_rows, _NUM_MEASURED_STEPS, generator)
    values = model.compute_action_values(steps.observations[steps.places[rows]], steps.actions[rows])
    value = (values - _look_ahead(model, steps, rows)).square().mean().sqrt() / model.value_scale
    rows = steps.draw(steps.test_plan_rows, _NUM_MEASURED_STEPS, generator)
    observations = steps.observations[steps.places[rows]]
    rewards, _ = model.predict_outcomes(observations, steps.actions[rows], steps.get_ends(rows))
    reward = (rewards - steps.plan_rewards[rows]).square().mean().sqrt() / model.reward_scale
    return ValueErrors(reward=float(reward), value=float(value))


def _find_scale(values: Tensor) -> Tensor:
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


def _decay(step: int, num_steps: int) -> float:
    """Learning rate relative to the peak: a short warm-up, then a cosine to 0."""
    return min((step + 1) / _NUM_WARM_UP_STEPS, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
