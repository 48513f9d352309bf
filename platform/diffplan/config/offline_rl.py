"""The settings of CQL and IQL, the baselines that are trained by RLlib on the data of the planners."""

from __future__ import annotations

from typing import Literal

from diffplan.config.codec import config_dataclass, require

Algorithm = Literal["cql", "iql"]


@config_dataclass
class OfflineRLSettings:
    """What both algorithms share.

    Source: the common values of Kumar et al. 2020 and Kostrikov et al. 2021.
    """

    hidden_dim: int = 256
    """Units of each of the two hidden layers of every network, ReLU between them."""
    batch_size: int = 256
    """Transitions of an update."""
    discount: float = 0.99
    """Discount of a step."""
    target_rate: float = 0.005
    """Share of the Q networks that each update mixes into the target networks."""
    actor_learning_rate: float = 3e-4
    """Adam's learning rate of the policy."""
    critic_learning_rate: float = 3e-4
    """Adam's learning rate of the Q networks (and of the state value of IQL)."""
    action_margin: float = 0.05
    """The bounds of the actions lie at ±(1 - margin) of the range of the squashed Gaussian: its log-density has poles
    at ±1, where recorded actions of saturated controllers lie. RLlib by itself stays 1e-6 away from them."""
    deterministic: Literal["tanh", "clip"] = "tanh"
    """The action of the trained policy: the squashed mean of its Gaussian, or the mean clipped to the bounds, which is
    what `to_deterministic` and the connectors of RLlib make of it."""
    goal_columns: tuple[int, ...] | None = None
    """Observation columns that a goal is made of; those of the dataset's environment if not given."""
    goal_radius: float = 0.5
    """A step is rewarded with 1 if it ends within this distance of the goal, else with 0."""
    current_goal_share: float = 0.2
    """Goal-conditioned: share of the goals that are where the step itself ends."""
    future_goal_share: float = 0.5
    """Goal-conditioned: share that are positions later in the episode, geometrically with the discount. The others are
    positions drawn from all data."""

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "batch_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("target_rate", "actor_learning_rate", "critic_learning_rate", "goal_radius"):
            require(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        require(self.target_rate <= 1, "target_rate", "at most 1", self.target_rate)
        require(0 < self.discount < 1, "discount", "a number in (0, 1)", self.discount)
        require(0 <= self.action_margin < 1, "action_margin", "a number in [0, 1)", self.action_margin)
        require(self.goal_columns is None or len(self.goal_columns) > 0, "goal_columns", "columns", self.goal_columns)
        shares = (self.current_goal_share, self.future_goal_share)
        require(min(shares) >= 0 and sum(shares) <= 1, "current_goal_share, future_goal_share", "a sum <= 1", shares)


@config_dataclass
class CQLSettings(OfflineRLSettings):
    """Conservative Q-learning, CQL(H) without a Lagrange multiplier. Source: Kumar et al. 2020."""

    actor_learning_rate: float = 1e-4
    """Adam's learning rate of the policy."""
    temperature_learning_rate: float = 1e-4
    """Adam's learning rate of the entropy temperature."""
    conservative_weight: float = 5.0
    """Weight of the conservative term, alpha of the paper."""
    num_sampled_actions: int = 10
    """Actions drawn from each of three distributions to estimate the conservative term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.conservative_weight >= 0, "conservative_weight", "a number >= 0", self.conservative_weight)
        require(self.temperature_learning_rate > 0, "temperature_learning_rate", "> 0", self.temperature_learning_rate)
        require(self.num_sampled_actions >= 1, "num_sampled_actions", "at least 1", self.num_sampled_actions)


@config_dataclass
class IQLSettings(OfflineRLSettings):
    """Implicit Q-learning. Source: Kostrikov et al. 2021, with the values of its navigation tasks."""

    expectile: float = 0.9
    """Expectile of the state value over actions."""
    inverse_temperature: float = 10.0
    """How strongly the policy prefers actions of high advantage, beta of the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.expectile < 1, "expectile", "a number in (0, 1)", self.expectile)
        require(self.inverse_temperature > 0, "inverse_temperature", "a positive number", self.inverse_temperature)


SETTINGS: dict[Algorithm, type[OfflineRLSettings]] = {"cql": CQLSettings, "iql": IQLSettings}
"""Settings of each algorithm."""
