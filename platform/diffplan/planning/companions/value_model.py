"""A value that judges plans: the return of a plan, learned from the rewards in a dataset.

The return of a plan is the value of its first observation plus the advantage of each of its steps over what the data
did there (Kakade and Langford 2002, lemma 6.1):

    J(plan) = V(s_0) + Σ_t discount^t A_t

A step is judged in one of these ways.

* `actions`: A_t = Q(s_t, a_t) - V(s_t). Only the planned action counts, not the next observation, so a plan cannot
  gain by observations that do not follow from one another. For plans of every environment step that hold actions.
* `observations`: A_t = r(s_t, a_t, s_t+1) + discount V(s_t+1) - V(s_t), so that J is the planned rewards and the value
  of the last observation. For plans of observations, and for strides. It assumes that the plan is what will happen.

Two further ways are for plans of few steps that are far apart.

* `last`: J = V(s_H), the value of the last observation.
* `plan`: J is predicted from the whole plan, as the rewards on the way and the value of the last observation.

Steps count by the predicted probability that the episode has not terminated before them; the last observation, by the
flag of the plan where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffplan.diffusion.guidance import PlanBatch
from diffplan.networks.layers import Layers

Judge = Literal["actions", "observations", "last", "plan"]
JUDGES: tuple[Judge, ...] = ("actions", "observations", "last", "plan")
NUM_ACTION_VALUES = 2
"""Networks for the value of an action; the minimum is used. Source: Fujimoto et al. 2018 (TD3), section 4."""


class ValueModel(nn.Module):
    """Values of observations and actions, and the reward and termination of a plan step, with their scales.

    Args:
        observation_dim: size of an observation.
        action_dim: size of an action.
        discount: of one environment step.
        stride: environment steps between two steps of a plan.
        judges_actions: whether rewards are also predicted from the action of a plan step; False if plans have none.
        has_terminations: whether episodes of the data terminated, so that terminations are predicted.
        offsets: environment steps from the first plan step to each of the others, for plans of one horizon, which are
            also judged as a whole; None for plans of several horizons.
        has_flags: whether plans have flags for the end of episodes.
        hidden_dim: width of the networks.
    """

    observation_center: Tensor
    observation_scale: Tensor
    action_center: Tensor
    action_scale: Tensor
    change_scale: Tensor
    plan_change_center: Tensor
    plan_change_scale: Tensor
    reward_center: Tensor
    reward_scale: Tensor
    value_center: Tensor
    value_scale: Tensor
    advantage_scale: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        discount: float = 0.99,
        stride: int = 1,
        judges_actions: bool = True,
        has_terminations: bool = False,
        offsets: Sequence[int] | None = None,
        has_flags: bool = False,
        hidden_dim: int = 128,
    ) -> None:
        super().__init__()
        self.offsets = None if offsets is None else tuple(offsets)
        self.has_flags = has_flags
        self.discount = discount
        self.stride = stride
        self.judges_actions = judges_actions
        self.has_terminations = has_terminations
        for name, size in (("observation", observation_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_center", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.register_buffer("change_scale", torch.ones(observation_dim))
        for name in ("reward", "value"):
            self.register_buffer(f"{name}_center", torch.zeros(()))
            self.register_buffer(f"{name}_scale", torch.ones(()))
        self.register_buffer("advantage_scale", torch.ones(()))
        step_dim = 2 * observation_dim + (action_dim if judges_actions else 0)
        self.value = _perceptron(observation_dim, hidden_dim, 1)
        self.action_values = nn.ModuleList(
            _perceptron(observation_dim + action_dim, hidden_dim, 1) for _ in range(NUM_ACTION_VALUES)
        )
        self.outcome = _perceptron(step_dim, hidden_dim, 2 if has_terminations else 1)
        if self.offsets is not None:
            shape = len(self.offsets), observation_dim
            self.register_buffer("plan_change_center", torch.zeros(shape))
            self.register_buffer("plan_change_scale", torch.ones(shape))
            plan_dim = observation_dim + len(self.offsets) * (observation_dim + has_flags)
            self.plan_value = _perceptron(plan_dim, hidden_dim, 1)

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        discount: float,
        stride: int,
        offsets: Sequence[int] | None = None,
        has_flags: bool = False,
    ) -> ValueModel:
        """A model with the layer sizes of these weights. It does not load them.

        Raises:
            KeyError: these are not weights of a value model.
        """
        observation_dim, action_dim = len(weights["observation_center"]), len(weights["action_center"])
        return cls(
            observation_dim,
            action_dim,
            discount=discount,
            stride=stride,
            judges_actions=weights["outcome.0.weight"].shape[1] > 2 * observation_dim,
            has_terminations=len(weights["outcome.6.bias"]) > 1,
            offsets=offsets,
            has_flags=has_flags,
            hidden_dim=len(weights["outcome.0.bias"]),
        )

    @property
    def step_discount(self) -> float:
        """Discount of a plan step."""
        return self.discount**self.stride

    def compute_values(self, observations: Float[Tensor, "*batch observation"]) -> Float[Tensor, "*batch"]:
        """Values of observations, in units of the reward."""
        return self.value(self.normalize_observations(observations))[..., 0] * self.value_scale + self.value_center

    def compute_action_values(
        self, observations: Float[Tensor, "*batch observation"], actions: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch"]:
        """Values of actions at observations, in units of the reward."""
        inputs = self.join(self.normalize_observations(observations), actions)
        lowest = torch.stack([network(inputs)[..., 0] for network in self.action_values]).amin(dim=0)
        return lowest * self.value_scale + self.value_center

    def predict_outcomes(
        self,
        observations: Float[Tensor, "*batch observation"],
        actions: Float[Tensor, "*batch action"],
        next_observations: Float[Tensor, "*batch observation"],
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Predict the rewards of plan steps, and whether episodes go on after them.

        Args:
            observations: observations at the start of each plan step.
            actions: their actions; without columns if plans have none.
            next_observations: observations at the end of each plan step.

        Returns:
            The discounted sums of the rewards of their environment steps, and the probabilities that the episode goes
            on after them.
        """
        outputs = self.outcome(self.join_step(observations, actions, next_observations))
        rewards = outputs[..., 0] * self.reward_scale + self.reward_center
        going_on = torch.sigmoid(-outputs[..., 1]) if self.has_terminations else torch.ones_like(rewards)
        return rewards, going_on

    def compute_plan_values(
        self, observations: Float[Tensor, "*batch horizon observation"], flags: Float[Tensor, "*batch horizon"] | None
    ) -> Float[Tensor, "*batch"]:
        """Values of whole plans, in units of the reward; flags are 1 while the episode goes on and -1 after its end."""
        first = observations[..., :1, :]
        changes = (observations[..., 1:, :] - first - self.plan_change_center) / self.plan_change_scale
        inputs = [self.normalize_observations(first[..., 0, :]), changes.flatten(-2)]
        if self.has_flags:
            assert flags is not None
            inputs.append(flags[..., 1:].clamp(-1.0, 1.0))
        return self.plan_value(torch.cat(inputs, dim=-1))[..., 0] * self.value_scale + self.value_center

    def normalize_observations(self, observations: Tensor) -> Tensor:
        """Observations as the networks take them."""
        return (observations - self.observation_center) / self.observation_scale

    def join(self, normalized_observations: Tensor, actions: Tensor) -> Tensor:
        """Observations and actions side by side, as the networks take them."""
        return torch.cat([normalized_observations, (actions - self.action_center) / self.action_scale], dim=-1)

    def join_step(self, observations: Tensor, actions: Tensor, next_observations: Tensor) -> Tensor:
        """A plan step as `outcome` takes it: with the change in units of the usual change."""
        first = self.normalize_observations(observations)
        first = self.join(first, actions) if self.judges_actions else first
        return torch.cat([first, (next_observations - observations) / self.change_scale], dim=-1)


@dataclass(frozen=True)
class LearnedValue:
    """The return of a plan as a guide; see the module.

    Attributes:
        model: the values.
        judge: how a step is judged.
    """

    model: ValueModel
    judge: Judge
    takes_lengths: ClassVar[bool] = True

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """How far the return of each plan is above the mean of the data, in standard deviations of advantages.

        In this unit a guidance scale means much the same in every environment.
        """
        model = self.model
        return (self._compute_returns(plans) - model.value_center) / model.advantage_scale

    def _compute_returns(self, plans: PlanBatch) -> Tensor:
        if self.judge == "actions":
            return self._sum_actions(plans, plans.within())
        if self.judge == "observations":
            return self._sum_rewards(plans, plans.within())
        if self.judge == "plan":
            return self.model.compute_plan_values(plans.observations, plans.flags)
        ends, rows = plans.ends(), torch.arange(len(plans.observations), device=plans.observations.device)
        last = (rows, torch.full_like(rows, plans.observations.shape[1] - 1) if ends is None else ends)
        values = self.model.compute_values(plans.observations[last])
        return values if plans.flags is None else values * ((plans.flags[last] + 1) / 2).clamp(0.0, 1.0)

    def _sum_actions(self, plans: PlanBatch, within: Tensor | None) -> Tensor:
        model, observations, actions = self.model, plans.observations, plans.actions
        values = model.compute_values(observations)
        advantages = model.compute_action_values(observations, actions) - values
        if within is not None:
            advantages = advantages.masked_fill(~within, 0.0)
        weights = self._weigh(advantages)
        if model.has_terminations:
            going_on = model.predict_outcomes(observations[:, :-1], actions[:, :-1], observations[:, 1:])[1]
            weights = weights * _survival(going_on)
        return values[:, 0] + (weights * advantages).sum(dim=1)

    def _sum_rewards(self, plans: PlanBatch, within: Tensor | None) -> Tensor:
        model, observations = self.model, plans.observations
        actions = plans.actions[:, :-1]
        rewards, going_on = model.predict_outcomes(observations[:, :-1], actions, observations[:, 1:])
        if within is not None:  # steps beyond the end have no reward, and the last observation is that of the end
            rewards = rewards.masked_fill(~within[:, 1:], 0.0)
            going_on = going_on.masked_fill(~within[:, 1:], 1.0)
        ends = plans.ends()
        weights, survival = self._weigh(observations[..., 0]), _survival(going_on)
        total = (weights[:-1] * survival[:, :-1] * rewards).sum(dim=1)
        if ends is None:
            return total + weights[-1] * survival[:, -1] * model.compute_values(observations[:, -1])
        last = observations[torch.arange(len(observations), device=observations.device), ends]
        return total + weights[ends] * survival[:, -1] * model.compute_values(last)

    def _weigh(self, steps: Float[Tensor, "batch steps"]) -> Float[Tensor, " steps"]:
        """Discounts of the steps of a plan."""
        return self.model.step_discount ** torch.arange(steps.shape[1], device=steps.device)


def _survival(going_on: Float[Tensor, "batch steps"]) -> Float[Tensor, "batch steps+1"]:
    """Probabilities that an episode has not ended before each step of a plan."""
    return torch.cat([torch.ones_like(going_on[:, :1]), going_on.cumprod(dim=1)], dim=1)


def _perceptron(input_dim: int, hidden_dim: int, output_dim: int, num_layers: int = 2) -> Layers:
    sizes: Sequence[int] = [input_dim, *[hidden_dim] * num_layers]
    hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.LayerNorm(o), nn.SiLU())]
    return Layers(*hidden, nn.Linear(hidden_dim, output_dim))
