"""The settings of calibration: how the models that planning uses beside the diffuser are fitted."""

from __future__ import annotations

from diffplan.config.codec import config_dataclass, require, require_between


@config_dataclass
class CalibrationConfig:
    """The fits of `diffplan calibrate`. Which ones it makes depends on the planner settings."""

    num_plans: int = 40_000
    """Plans to train the horizon model on."""
    quantile: float = 0.65
    """Quantile of the speed errors that the horizon model predicts: 0.5 is the median; higher is more cautious."""
    expectile: float = 0.9
    """Expectile of the action values in the data that is the value of an observation: 0.5 is their mean, towards 1
    the best action."""
    value_steps: int = 1
    """Rewards that the target of a value adds up before the value of the observation after them. More than one carries
    rewards over an episode sooner, but the target is then the return of the data's actions and not of the best."""

    def __post_init__(self) -> None:
        require_between(self, "calibration.", num_plans=(1, 10**9), value_steps=(1, 1_000_000))
        for name in ("quantile", "expectile"):
            value = getattr(self, name)
            require(0 < value < 1, f"calibration.{name}", "a number in (0, 1)", value)
