"""MPPI: model predictive control by sampling, in the true simulator.

Every `steps_per_plan` environment steps, noise is added to the action sequence that is being followed, the noisy
sequences are tried in the simulator from the present state, and the sequence becomes their average, weighted by
exp(return / temperature). In between, the sequence is followed as it stands; the next plan starts from what is left.

What is maximised is the task's own reward, summed over the horizon, plus `dense_weight` times the reward of the task's
dense variant. A sparse reward alone leaves all samples alike until one of them happens on the goal; a dense one tells
nearer from further, and may lead into a dead end.

Departures from the paper: the temperature is in units of the samples' own spread, so that one number serves far from
the goal, where returns differ by thousandths, and near it; actions cost nothing, as in the task (alpha = 1); noise is
held for `steps_per_knot` steps, because white noise hardly moves a body of some inertia; and one sample of each plan
is the sequence without noise, so that a good one is not lost.

What the defaults score, and what else was tried, is in `docs/baselines.md`.

Source: Williams et al. 2017, "Information theoretic MPC for model-based reinforcement learning", Alg. 1 and 2; the
baseline of Janner et al. 2022, Table 1, there with the true dynamics too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffplan.config.codec import require
from diffplan.environments import Simulator, make_simulator

if TYPE_CHECKING:
    from diffplan.tasks.contracts import MakePolicy, RolloutContext


@dataclass(frozen=True)
class MppiSettings:
    """How MPPI plans; the defaults are those that `docs/baselines.md` measures.

    A plan of one environment costs `num_iterations * num_samples * horizon` simulated steps.

    Attributes:
        num_samples: action sequences tried in each iteration, of which one is the present sequence itself.
        horizon: environment steps that a sequence lasts.
        temperature: lambda, in standard deviations of the returns of an environment's samples; towards 0 the best
            sample is all that counts, towards infinity all count alike.
        noise_std: standard deviation of the noise, in units of the action.
        steps_per_knot: environment steps for which one draw of the noise is held.
        steps_per_plan: environment steps for which a sequence is followed before it is planned again.
        num_iterations: times that the sequence is improved in each plan.
        dense_weight: weight of the dense reward beside the task's own; 0 leaves the task's own alone.

    Raises:
        ConfigError: a setting out of its range.
    """

    num_samples: int = 128
    horizon: int = 150
    temperature: float = 0.1
    noise_std: float = 1.0
    steps_per_knot: int = 15
    steps_per_plan: int = 10
    num_iterations: int = 1
    dense_weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.num_samples >= 2, "mppi.num_samples", "at least 2", self.num_samples)
        require(self.horizon >= 1, "mppi.horizon", "at least 1", self.horizon)
        for field in ("temperature", "noise_std"):
            value = getattr(self, field)
            require(0 < value < np.inf, f"mppi.{field}", "a finite number above 0", value)
        for field in ("steps_per_knot", "steps_per_plan"):
            value = getattr(self, field)
            require(1 <= value <= self.horizon, f"mppi.{field}", f"1 to the horizon, {self.horizon}", value)
        require(self.num_iterations >= 1, "mppi.num_iterations", "at least 1", self.num_iterations)
        require(
            0 <= self.dense_weight < np.inf,
            "mppi.dense_weight",
            "a finite number that is not negative",
            self.dense_weight,
        )


class MppiPolicy:
    """Plans by MPPI in a simulator, for a batch of environments that run in step.

    Args:
        make_batch: makes a simulator of the size it is given; see `diffplan.environments.make_simulator`.
        settings: how to plan.
        generators: source of noise of each environment, so that an episode is the same in any batch.
        action_low: lower bounds of the actions, float[action_dim], -inf where there are none.
        action_high: upper bounds of the actions, float[action_dim], inf where there are none.

    Attributes:
        sequences: the actions to come in each environment, float32[num_envs, horizon, action_dim], the first entry
            being the action at the step of the last plan.
        num_plans: plans made in each environment, int[num_envs].
        plan_seconds: seconds spent planning, over all environments.
    """

    def __init__(
        self,
        make_batch: Callable[[int], Simulator],
        settings: MppiSettings,
        generators: Sequence[np.random.Generator],
        action_low: np.ndarray,
        action_high: np.ndarray,
    ) -> None:
        self._settings = settings
        self._generators = generators
        self._simulator = make_batch(len(generators) * settings.num_samples)
        self._low, self._high = (np.asarray(bound, dtype=np.float32) for bound in (action_low, action_high))
        self.sequences = np.zeros((len(generators), settings.horizon, len(self._low)), dtype=np.float32)
        self.num_plans = np.zeros(len(generators), dtype=int)
        self.plan_seconds = 0.0

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes, with no plan yet.

        Args:
            observations: float[num_envs, observation_dim], one row for each generator.
            goals: float[num_envs, goal_dim]; None where episodes have none.

        Raises:
            ValueError: more or fewer observations than generators.
        """
        if len(observations) != len(self._generators):
            raise ValueError(f"observations: expected {len(self._generators)} rows, got {len(observations)}")
        self._goals = np.zeros((len(observations), 0)) if goals is None else np.array(goals)
        self._env_step = 0
        self.sequences = np.clip(np.zeros_like(self.sequences), self._low, self._high)
        self.num_plans = np.zeros(len(observations), dtype=int)
        self.plan_seconds = 0.0

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for observations float[num_envs, observation_dim]."""
        steps_on_plan = self._env_step % self._settings.steps_per_plan
        if steps_on_plan == 0:
            since = time.perf_counter()
            if self._env_step:
                self.sequences = shift_sequences(self.sequences, self._settings.steps_per_plan)
            for _ in range(self._settings.num_iterations):
                self._improve(observations)
            self.num_plans += 1
            self.plan_seconds += time.perf_counter() - since
        self._env_step += 1
        return self.sequences[:, steps_on_plan].copy()

    def _improve(self, observations: np.ndarray) -> None:
        candidates = self._sample()
        weights = compute_weights(self._simulate(candidates, observations), self._settings.temperature)
        # Added up sample by sample in the same order whatever the batch; the mean of clipped actions is in the bounds.
        means = (weights[:, :, None, None] * candidates).sum(axis=1)
        self.sequences = np.clip(means.astype(np.float32), self._low, self._high)

    def _sample(self) -> np.ndarray:
        """Sequences to try, float32[num_envs, num_samples, horizon, action_dim]; the first of each has no noise."""
        settings = self._settings
        num_knots = -(-settings.horizon // settings.steps_per_knot)
        shape = (settings.num_samples - 1, num_knots, len(self._low))
        knots = np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in self._generators])
        noise = np.repeat(knots, settings.steps_per_knot, axis=2)[:, :, : settings.horizon]
        candidates = np.repeat(self.sequences[:, None], settings.num_samples, axis=1)
        candidates[:, 1:] += np.float32(settings.noise_std) * noise
        return np.clip(candidates, self._low, self._high, out=candidates)

    def _simulate(self, candidates: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """What each sequence is paid from the observations on, float64[num_envs, num_samples]."""
        num_envs, num_samples, horizon, action_dim = candidates.shape
        self._simulator.set_states(*(np.repeat(rows, num_samples, axis=0) for rows in (observations, self._goals)))
        returns = np.zeros(num_envs * num_samples)
        for i in range(horizon):
            _, rewards, dense_rewards = self._simulator.step(candidates[:, :, i].reshape(-1, action_dim))
            returns += rewards + self._settings.dense_weight * dense_rewards
        return returns.reshape(num_envs, num_samples)


def compute_weights(returns: np.ndarray, temperature: float) -> np.ndarray:
    """Weights of samples, proportional to exp(return / (temperature * spread)), each row adding up to 1.

    Args:
        returns: float[num_envs, num_samples].
        temperature: lambda, in units of the spread, which is the standard deviation of a row.

    Returns:
        float64[num_envs, num_samples]; alike in a row whose returns are.

    Source: Williams et al. 2017, Alg. 2, with the spread as the unit of lambda.
    """
    below_best = returns - returns.max(axis=1, keepdims=True)
    spread = returns.std(axis=1, keepdims=True)
    weights = np.exp(below_best / np.where(spread > 0, temperature * spread, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def shift_sequences(sequences: np.ndarray, num_steps: int) -> np.ndarray:
    """What is left of sequences [num_envs, horizon, action_dim] after some steps; their last action fills the end."""
    kept = sequences[:, num_steps:]
    return np.concatenate([kept, np.repeat(sequences[:, -1:], sequences.shape[1] - kept.shape[1], axis=1)], axis=1)


def follow_mppi(settings: MppiSettings | None = None) -> MakePolicy:
    """The policy that plans by MPPI in the environment's own simulator.

    Args:
        settings: how to plan; the defaults if None.

    Returns:
        A function that makes the policy; it raises `ConfigError` for an environment without a simulator.
    """

    def make(context: RolloutContext) -> MppiPolicy:
        generators = [np.random.Generator(np.random.PCG64(seed)) for seed in context.seeds]
        return MppiPolicy(
            lambda num_envs: make_simulator(context.env, num_envs),
            settings or MppiSettings(),
            generators,
            context.action_low,
            context.action_high,
        )

    return make
