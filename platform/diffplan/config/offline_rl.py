"""The settings of CQL and IQL, the baselines that RLlib trains on the datasets of the planners."""

from __future__ import annotations

from typing import Literal

from diffplan.config.codec import config_dataclass, require, require_between

Algorithm = Literal["cql", "iql"]


@config_dataclass
class OfflineRLSettings:
    """The settings that both algorithms share.

    Source: the common values of Kumar et al. 2020 and Kostrikov et al. 2021.
    """

    hidden_dim: int = 256
    """Units of each of the two hidden layers of every network, ReLU between them."""
    batch_size: int = 256
    """Transitions in an update."""
    discount: float = 0.99
    """Discount per step."""
    target_rate: float = 0.005
    """Weight of the Q networks in each update of the target networks (Polyak averaging)."""
    actor_learning_rate: float = 3e-4
    """Learning rate of the policy (Adam)."""
    critic_learning_rate: float = 3e-4
    """Learning rate of the Q networks, and of the state value of IQL (Adam)."""
    action_margin: float = 0.05
    """The action bounds are mapped to ±(1 - margin) in the range of the squashed Gaussian: its log-density has poles at
    ±1, and saturated controllers record actions at their bounds. RLlib's own margin is only 1e-6."""
    deterministic: Literal["tanh", "clip"] = "tanh"
    """The action of the trained policy: the squashed mean of its Gaussian, or the mean clipped to the bounds, as by
    RLlib's `to_deterministic` and connectors."""
    goal_columns: tuple[int, ...] | None = None
    """Observation columns of a goal; those of the dataset's environment if not given. Without any, the rewards are
    those in the data."""
    normalize_rewards: bool = False
    """Rewards in the data are divided by the range of the returns of episodes, times 1000."""
    goal_radius: float = 0.5
    """The reward of a step is 1 if it ends within this distance of the goal, else 0."""
    current_goal_share: float = 0.2
    """Goal-conditioned: share of the goals that are the position at the end of the step."""
    future_goal_share: float = 0.5
    """Goal-conditioned: share of the goals that are later positions of the episode, at a geometrically distributed
    distance with the discount. The others are positions drawn from all data."""

    def __post_init__(self) -> None:
        require_between(self, "", hidden_dim=(1, 65_536), batch_size=(1, 10_000_000))
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
    """Learning rate of the policy (Adam)."""
    temperature_learning_rate: float = 1e-4
    """Learning rate of the entropy temperature (Adam)."""
    conservative_weight: float = 5.0
    """Weight of the conservative term, alpha of the paper."""
    num_sampled_actions: int = 10
    """Actions drawn from each of three distributions to estimate the conservative term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.conservative_weight >= 0, "conservative_weight", "a number >= 0", self.conservative_weight)
        require(self.temperature_learning_rate > 0, "temperature_learning_rate", "> 0", self.temperature_learning_rate)
        require_between(self, "", num_sampled_actions=(1, 100_000))


@config_dataclass
class IQLSettings(OfflineRLSettings):
    """Implicit Q-learning. Source: Kostrikov et al. 2021, with the values of its navigation tasks."""

    expectile: float = 0.9
    """Expectile of the state value over actions."""
    inverse_temperature: float = 10.0
    """Inverse temperature of the advantage weights of the policy, beta of the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.expectile < 1, "expectile", "a number in (0, 1)", self.expectile)
        require(self.inverse_temperature > 0, "inverse_temperature", "a positive number", self.inverse_temperature)


SETTINGS: dict[Algorithm, type[OfflineRLSettings]] = {"cql": CQLSettings, "iql": IQLSettings}
"""Settings of each algorithm."""
