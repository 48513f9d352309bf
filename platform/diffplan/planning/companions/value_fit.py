"""Fit a value model to a dataset.

Source: Kostrikov et al. 2021 (implicit Q-learning), section 4: the value of an observation is an expectile of the
values of the actions that the data took there, so that actions outside the data are never evaluated. Additions: the
fit begins with the returns in the data as targets, which may add up several rewards; terminal observations that plans
may hold are pinned to 0; and the reward and the termination of a plan step are learned too, with the value of whole
plans of one horizon.
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
from diffplan.planning.companions.value_model import ValueModel
from diffplan.planning.companions.value_steps import NUM_MEASURED_STEPS, ValueSteps, find_scale
from diffplan.seeding import Stream, make_generator, make_seed

MIN_FIT_STEPS, MAX_FIT_STEPS, FIT_PASSES = 500, 5_000, 50
"""Limits of the default number of optimizer steps, which draws each environment step 50 times."""
WARM_START_SHARE = 0.2
"""Share of the fit in which the targets are returns from the data: bootstrapping then starts near the truth and needs
few steps to carry rewards over a whole episode."""
TARGET_RATE = 0.05
"""Rate at which the target networks follow the fitted ones (exponential moving average)."""
TERMINAL_WEIGHT = 0.1
"""Weight of the squared value of terminal observations in the loss, where plans may hold them."""
_NUM_WARM_UP_STEPS = 100
_MAX_GRADIENT_NORM = 10.0


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
    steps = ValueSteps.read(
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
    # So large that the value does not see these columns.
    model.observation_scale[list(config.windows.relative_columns)] = torch.finfo(torch.float32).max
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
        if config.windows.has_flag and len(steps.terminal_places):
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
    rows = steps.draw(steps.training_rows, NUM_MEASURED_STEPS, generator)
    observations, actions = steps.observations[steps.places[rows]], steps.actions[rows]
    advantages = model.compute_action_values(observations, actions) - model.compute_values(observations)
    model.advantage_scale.copy_(find_scale(advantages))
    return model, _measure_errors(model, steps, generator)


def _look_ahead(model: ValueModel, steps: ValueSteps, rows: Tensor) -> Tensor:
    """The next rewards and the discounted value of the observation after them, which is 0 if it is terminal."""
    num = steps.remaining[rows].clamp(max=steps.num_ahead)
    terminal = steps.terminates[rows] & (steps.remaining[rows] <= steps.num_ahead)
    following = model.compute_values(steps.observations[steps.places[rows] + num])
    return steps.ahead_rewards[rows] + steps.discount**num * following.masked_fill(terminal, 0.0)


def _plan_loss(model: ValueModel, steps: ValueSteps, rows: Tensor, is_early: bool) -> Tensor:
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


def _outcome_loss(model: ValueModel, steps: ValueSteps, rows: Tensor) -> Tensor:
    observations = steps.observations[steps.places[rows]]
    outputs = model.outcome(model.join_step(observations, steps.actions[rows], steps.get_ends(rows)))
    loss = F.mse_loss(outputs[:, 0], (steps.plan_rewards[rows] - model.reward_center) / model.reward_scale)
    if model.has_terminations:
        loss = loss + F.binary_cross_entropy_with_logits(outputs[:, 1], steps.ends_within(rows).float())
    return loss


@torch.no_grad()
def _measure_errors(model: ValueModel, steps: ValueSteps, generator: torch.Generator) -> ValueErrors:
    rows = steps.draw(steps.test_rows, NUM_MEASURED_STEPS, generator)
    values = model.compute_action_values(steps.observations[steps.places[rows]], steps.actions[rows])
    value = (values - _look_ahead(model, steps, rows)).square().mean().sqrt() / model.value_scale
    rows = steps.draw(steps.test_plan_rows, NUM_MEASURED_STEPS, generator)
    observations = steps.observations[steps.places[rows]]
    rewards, _ = model.predict_outcomes(observations, steps.actions[rows], steps.get_ends(rows))
    reward = (rewards - steps.plan_rewards[rows]).square().mean().sqrt() / model.reward_scale
    return ValueErrors(reward=float(reward), value=float(value))


def _decay(step: int, num_steps: int) -> float:
    """Learning rate relative to the peak: a short warm-up, then a cosine to 0."""
    return min((step + 1) / _NUM_WARM_UP_STEPS, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
