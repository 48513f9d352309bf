"""The settings of planning, in a module of their own because searches and settings files hold only these.

There is a section for each part of planning, read by one module. Controllers and rules of replanning have different
fields, so these two sections are tagged unions, chosen by `kind`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from diffplan.config.codec import config_dataclass, require
from diffplan.config.kinds import ByKind


@config_dataclass
class SamplingConfig:
    """The reverse process."""

    sampler: Literal["ddim", "ddpm", "dpm_solver"] = "ddim"
    """DDIM, ancestral (DDPM), or DPM-Solver++(2M)."""
    num_steps: int = 8
    """Denoising steps."""
    step_spacing: Literal["uniform", "log_snr"] = "uniform"
    """Where the denoising steps lie: evenly in diffusion steps, or in the logarithm of the signal-to-noise ratio."""
    num_repeats: int = 1
    """How often each denoising step is taken, with its noise added again in between; more than once makes what is fixed
    in the middle of a plan agree with the rest."""
    temperature: float = 1.0
    """Scale of the initial noise and of the noise that `ddpm` adds."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_repeats"):
            require(getattr(self, name) >= 1, f"planning.sampling.{name}", "at least 1", getattr(self, name))
        require(self.temperature >= 0, "planning.sampling.temperature", "a number >= 0", self.temperature)


@config_dataclass
class HorizonConfig:
    """Which horizons are tried: the shortest that yields a consistent plan is taken."""

    min: int = 8
    """Shortest horizon to try, in transitions."""
    max: int = 36
    """Longest horizon to try; taken where no plan is consistent."""
    multiple: int = 4
    """Horizons tried are multiples of this, counted from `min`."""
    rule: Literal["auto", "scan", "predict"] = "auto"
    """`scan` plans with every horizon from the shortest up; `predict` begins at the horizon that the checkpoint's
    horizon model expects to be consistent (`diffplan calibrate` fits one) and goes up from there only if it is not;
    `auto` predicts where there is such a model."""
    max_speed_error: float = 10.0
    """A plan is consistent if nowhere |Δposition/Δtime - mean velocity| exceeds this, in units per second."""
    max_departure: float = 0.0
    """A plan is consistent only if it stays this close to where the data have been, or as close as its start and goal
    are, in units of the positions. 0 asks nothing of it, and neither does a checkpoint that does not know where they
    have been (`diffplan calibrate`)."""

    def __post_init__(self) -> None:
        require(self.min >= 2, "planning.horizon.min", "at least 2", self.min)
        require(self.max >= self.min, "planning.horizon.max", f"at least planning.horizon.min ({self.min})", self.max)
        require(self.multiple >= 1, "planning.horizon.multiple", "at least 1", self.multiple)
        for name in ("max_speed_error", "max_departure"):
            require(getattr(self, name) >= 0, f"planning.horizon.{name}", "a number >= 0", getattr(self, name))

    @property
    def tried(self) -> tuple[int, ...]:
        """Horizons to try, ascending."""
        return tuple(range(self.min, self.max + 1, self.multiple))


@config_dataclass
class SelectionConfig:
    """Which of several plans is kept."""

    num_candidates: int = 2
    """Plans drawn for each horizon; the best is kept."""
    rule: Literal["consistency", "guide"] = "consistency"
    """Which candidate is best, of those that violate no limit: the most consistent, or, among the consistent ones, the
    one that the guides score highest."""

    def __post_init__(self) -> None:
        require(self.num_candidates >= 1, "planning.selection.num_candidates", "at least 1", self.num_candidates)


@config_dataclass
class GuidanceConfig:
    """What bends plans, and how much."""

    guides: tuple[str, ...] = ()
    """What is maximised, summed: each an expression such as `2 * goal_distance() + keep_out([3, 4], 0.5)`, or the
    import path of a guide, such as `my_package.guides:make_guide`. Used where `scale` is not 0, and by
    `planning.selection.rule guide`."""
    value: str | None = None
    """A value as one more guide: `actions` or `observations`, what of a plan the value judges that `diffplan calibrate`
    fits; or the checkpoint of a value function (`training.objective value`)."""
    scale: float = 0.0
    """Strength of the guides; 0 is none."""
    num_steps: int = 1
    """Gradient steps of the guides in each denoising step."""
    target: Literal["noisy", "denoised", "network"] = "noisy"
    """Where gradients are taken: at the noisy plan; at the estimate of the clean plan, which is moved itself; or at
    that estimate but through the network, moving the noisy plan."""
    scaling: Literal["variance", "none"] = "variance"
    """Whether a gradient step is scaled by the variance of the denoising step."""
    max_gradient: float | None = None
    """Gradients of a plan are scaled down to this norm; None for never."""
    stop_step: int = 0
    """Guides rest below this diffusion step."""

    def __post_init__(self) -> None:
        for name in ("scale", "stop_step"):
            require(getattr(self, name) >= 0, f"planning.guidance.{name}", "a number >= 0", getattr(self, name))
        require(self.num_steps >= 1, "planning.guidance.num_steps", "at least 1", self.num_steps)
        require(
            self.max_gradient is None or self.max_gradient > 0,
            "planning.guidance.max_gradient",
            "a positive number",
            self.max_gradient,
        )


@config_dataclass
class ConditionConfig:
    """What a conditioned network is asked for (classifier-free guidance)."""

    scale: float = 1.0
    """0 ignores the condition, 1 follows it, above 1 exaggerates it."""
    target_return: float | None = None
    """Return to ask for, where the network is conditioned on returns."""
    task: int | None = None
    """Task to ask for, where the network is conditioned on tasks."""


@config_dataclass
class _Following:
    """What controllers have in common that follow the observations of a plan."""

    kind: str
    """`tracking`, `inverse_dynamics`, `actions`, one of the task, or an import path; each has its own fields."""
    interpolation: Literal["linear", "hermite"] = "linear"
    """Between two plan steps: straight lines, or cubics that have the planned velocities as well."""
    pace: float = 1.0
    """How many times as fast plans are followed as they were planned: above 1 where the data took their time."""
    max_lag: float = 0.0
    """The plan pauses while the position is further than this from it, in units, and is given up if that lasts; 0 never
    pauses."""

    def __post_init__(self) -> None:
        require(self.pace > 0, "planning.controller.pace", "a positive number", self.pace)
        require(self.max_lag >= 0, "planning.controller.max_lag", "a number >= 0", self.max_lag)


@config_dataclass
class Tracking(_Following):
    """Controller: feedback on the errors of position and velocity."""

    kind: Literal["tracking"] = "tracking"
    position_gain: float = 10.0
    """Action per unit of position error."""
    velocity_gain: float = 1.0
    """Action per unit of velocity error."""


@config_dataclass
class InverseDynamics(_Following):
    """Controller: the action that a model predicts between the present observation and the planned one."""

    kind: Literal["inverse_dynamics"] = "inverse_dynamics"


@config_dataclass
class Actions:
    """Controller: the planned actions as they are."""

    kind: Literal["actions"] = "actions"


@config_dataclass
class OwnController(_Following):
    """Controller: one of the task by its name, or of the user by an import path such as `my_module:MyController`."""


@config_dataclass
class Never:
    """Replanning: follow each plan to its end."""

    kind: Literal["never"] = "never"
    """`never`, `sooner` or `receding`; each has its own fields."""


@config_dataclass
class Sooner:
    """Replanning: change over to plans that arrive at the goal sooner, and give up plans that cannot be followed."""

    kind: Literal["sooner"] = "sooner"
    """`never`, `sooner` or `receding`; each has its own fields."""
    interval: int = 0
    """Environment steps between two searches for a sooner plan; 0 never searches."""
    max_deviation: float = 0.7
    """Plan again where the position is further than this from the plan, in units; 0 never does."""

    def __post_init__(self) -> None:
        for name in ("interval", "max_deviation"):
            require(getattr(self, name) >= 0, f"planning.replanning.{name}", "a number >= 0", getattr(self, name))


@config_dataclass
class Receding:
    """Replanning: receding-horizon control, a new plan on a timer that is always followed."""

    kind: Literal["receding"] = "receding"
    """`never`, `sooner` or `receding`; each has its own fields."""
    interval: int = 1
    """Environment steps that each plan is followed for."""
    warm_start: float = 0.0
    """New plans start from the rest of the plan before, which is noised again to this share of the diffusion steps; 0
    plans from scratch."""

    def __post_init__(self) -> None:
        require(self.interval >= 1, "planning.replanning.interval", "at least 1", self.interval)
        require(0 <= self.warm_start <= 1, "planning.replanning.warm_start", "a number in [0, 1]", self.warm_start)


Controlling = Tracking | InverseDynamics | Actions | OwnController
Replanning = Never | Sooner | Receding


@config_dataclass
class PlanningConfig:
    """How a trained model plans and acts: what `diffplan tune` searches and `--settings` files hold."""

    sampling: SamplingConfig = SamplingConfig()
    horizon: HorizonConfig = HorizonConfig()
    selection: SelectionConfig = SelectionConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    condition: ConditionConfig = ConditionConfig()
    controller: Annotated[Controlling, ByKind()] = Tracking()
    """How plans become actions."""
    replanning: Annotated[Replanning, ByKind()] = Sooner()
    """When a new plan is made and followed."""
