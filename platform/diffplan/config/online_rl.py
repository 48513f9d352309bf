"""The settings of soft actor-critic, with which RLlib trains policies that collect data."""

from __future__ import annotations

from diffplan.config.codec import config_dataclass, require, require_between


@config_dataclass
class SACSettings:
    """Soft actor-critic with a learned temperature. Source: Haarnoja et al. 2018."""

    hidden_dim: int = 256
    """Units of each of the two hidden layers of every network, ReLU between them."""
    batch_size: int = 256
    """Transitions in an update."""
    discount: float = 0.99
    """Discount per step."""
    target_rate: float = 0.005
    """Weight of the Q networks in each update of the target networks (Polyak averaging)."""
    learning_rate: float = 3e-4
    """Learning rate of policy, Q networks and temperature (Adam)."""
    updates_per_step: float = 1.0
    """Gradient updates for each environment step, from the end of `random_steps` on."""
    random_steps: int = 5_000
    """First environment steps, with random actions."""
    num_envs: int = 8
    """Environments that are stepped side by side."""
    round_steps: int = 10_000
    """Environment steps between two snapshots of the policy. Episodes that run then are cut, and the training can be
    resumed from there."""

    def __post_init__(self) -> None:
        require_between(
            self,
            "",
            hidden_dim=(1, 65_536),
            batch_size=(1, 10_000_000),
            random_steps=(1, 10**9),
            num_envs=(1, 100_000),
            round_steps=(1, 10**9),
        )
        require(0 < self.discount < 1, "discount", "a number in (0, 1)", self.discount)
        require(0 < self.target_rate <= 1, "target_rate", "a number in (0, 1]", self.target_rate)
        require(self.learning_rate > 0, "learning_rate", "a positive number", self.learning_rate)
        require(0 <= self.updates_per_step <= 100, "updates_per_step", "a number in [0, 100]", self.updates_per_step)
        require(
            self.round_steps % self.num_envs == 0,
            "round_steps",
            f"a multiple of num_envs ({self.num_envs})",
            self.round_steps,
        )
