"""The settings of planning. They have their own module because searches and settings files contain only these.

Each part of planning has a section, read by one module. Controllers and replanning rules have different fields, so
these two sections are tagged unions, chosen by `kind`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from diffplan.config.codec import config_dataclass, require, require_between
from diffplan.config.kinds import ByKind

MAX_HORIZON = 100_000
"""Transitions of a window or a plan."""
MAX_STEPS = 10**12
"""Steps of environments or optimizers."""
MAX_GUIDES = 100
MAX_PASSES = 1_000_000
"""Passes of the network or its guides in one plan."""
MAX_ENTRIES = 100_000_000
"""Steps of all candidates of a plan together."""


@config_dataclass
class SamplingConfig:
    """The reverse process."""

    sampler: Literal["ddim", "ddpm", "dpm_solver"] = "ddim"
    """DDIM, ancestral (DDPM), or DPM-Solver++(2M)."""
    num_steps: int = 8
    """Denoising steps."""
    step_spacing: Literal["uniform", "log_snr"] = "uniform"
    """Spacing of the denoising steps: even in diffusion steps, or in the logarithm of the signal-to-noise ratio."""
    num_repeats: int = 1
    """Repetitions of each denoising step, with the noise added again in between (RePaint); more than one makes fixed
    entries in the middle of a plan consistent with the rest."""
    temperature: float = 1.0
    """Scale of the initial noise and of the noise that `ddpm` adds."""

    def __post_init__(self) -> None:
        require_between(self, "planning.sampling.", num_steps=(1, 10_000), num_repeats=(1, 1_000))
        require(0 <= self.temperature < math.inf, "planning.sampling.temperature", "a number >= 0", self.temperature)


@config_dataclass
class HorizonConfig:
    """The horizons that are tried; the planner takes the shortest one with a consistent plan."""

    min: int = 8
    """Shortest horizon to try, in transitions."""
    max: int = 36
    """Longest horizon to try; used if no plan is consistent."""
    multiple: int = 4
    """Horizons tried are multiples of this, counted from `min`."""
    rule: Literal["auto", "scan", "predict"] = "auto"
    """`scan` plans with every horizon from the shortest up; `predict` starts at the horizon that the checkpoint's
    horizon model predicts to be consistent (`diffplan calibrate` fits one) and tries longer ones only if it is not;
    `auto` predicts if the checkpoint has such a model."""
    max_speed_error: float | None = None
    """A plan is consistent if |Δposition/Δtime - mean velocity| is at most this at every step, in units per second;
    None for no limit. It depends on the environment: `diffplan calibrate` measures the errors of its data."""
    max_departure: float = 0.0
    """Largest distance of a consistent plan from the positions in the data, in units of the positions; the distance of
    its start or goal, if that is larger. No limit if 0, or if the checkpoint has no support model (`diffplan calibrate`
    fits one)."""

    def __post_init__(self) -> None:
        require_between(
            self, "planning.horizon.", min=(2, MAX_HORIZON), max=(2, MAX_HORIZON), multiple=(1, MAX_HORIZON)
        )
        require(self.max >= self.min, "planning.horizon.max", f"at least planning.horizon.min ({self.min})", self.max)
        for name in ("max_speed_error", "max_departure"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"planning.horizon.{name}", "a number >= 0", value)

    @property
    def tried(self) -> tuple[int, ...]:
        """Horizons to try, ascending."""
        return tuple(range(self.min, self.max + 1, self.multiple))


@config_dataclass
class SelectionConfig:
    """The choice among several plans."""

    num_candidates: int = 2
    """Plans drawn for each horizon; the best is kept."""
    rule: Literal["consistency", "guide", "soft", "mean"] = "consistency"
    """`consistency`, `guide`: the best candidate among those that violate no limit, which is the most consistent one,
    or the consistent one with the highest score of the guides. `soft`, `mean`: the average of the candidates, weighted
    by the score of the guides or with equal weights, for plans that are followed for a step or two."""
    temperature: float = 0.5
    """Rule `soft`: a candidate's weight is the exponential of its score, in standard deviations of the candidates'
    scores, divided by this."""
    refine: str | None = None
    """A projection of the task, or the import path of a function from first and planned last observations to the
    nearest possible last ones. Drafts are drawn without guidance, and plans are made with `windows.known_columns` of
    the best one's possible end fixed. Not where constraints fix the end; None for never."""
    num_drafts: int = 64
    """Drafts of which `refine` takes the best, by the rule."""

    def __post_init__(self) -> None:
        require_between(self, "planning.selection.", num_candidates=(1, 100_000), num_drafts=(1, 100_000))
        require(
            0 < self.temperature < math.inf, "planning.selection.temperature", "a positive number", self.temperature
        )


@config_dataclass
class GuidanceConfig:
    """The guides of sampling, and their strength."""

    guides: tuple[str, ...] = ()
    """Guides whose sum is maximised: each is an expression such as `2 * goal_distance() + keep_out([3, 4], 0.5)`, also
    with guides of the task, or the import path of a guide, such as `my_package.guides:make_guide`. Used if `scale` is
    not 0, and by `planning.selection.rule guide`."""
    value: str | None = None
    """A value function as another guide: `actions`, `observations`, `last` or `plan` for the one that `diffplan
    calibrate` fits, which judges the actions of a plan, its observations, its last observation alone, or the plan as a
    whole; or the checkpoint of a value function (`training.objective value`)."""
    scale: float = 0.0
    """Strength of the guides; 0 for no guidance."""
    num_steps: int = 1
    """Gradient steps of the guides in each denoising step."""
    target: Literal["noisy", "denoised", "network"] = "noisy"
    """Where the gradient is taken: at the noisy plan; at the estimate of the clean plan, to move the estimate; or at
    the estimate but through the network, to move the noisy plan."""
    scaling: Literal["variance", "none"] = "variance"
    """Whether a gradient step is scaled by the variance of the denoising step."""
    max_gradient: float | None = None
    """Gradients of a plan are scaled down to this norm; None for never."""
    start_step: int | None = None
    """Guides are off above this diffusion step, where plans are mostly noise; None: on from the first."""
    stop_step: int = 0
    """Guides are off below this diffusion step."""

    def __post_init__(self) -> None:
        require(len(self.guides) <= MAX_GUIDES, "planning.guidance.guides", f"at most {MAX_GUIDES}", len(self.guides))
        require(0 <= self.scale < math.inf, "planning.guidance.scale", "a number >= 0", self.scale)
        require_between(self, "planning.guidance.", start_step=(0, 1_000_000), stop_step=(0, 1_000_000))
        require_between(self, "planning.guidance.", num_steps=(1, 1_000))
        require(
            self.max_gradient is None or self.max_gradient > 0,
            "planning.guidance.max_gradient",
            "a positive number",
            self.max_gradient,
        )


@config_dataclass
class ConditionConfig:
    """The condition of a conditioned network (classifier-free guidance)."""

    scale: float = 1.0
    """0 ignores the condition, 1 follows it, above 1 exaggerates it."""
    target_return: float | None = None
    """Target return, if the network is conditioned on returns."""
    task: int | None = None
    """Label of the task, if the network is conditioned on tasks."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale), "planning.condition.scale", "a number", self.scale)


@config_dataclass
class _Following:
    """The common fields of controllers that follow the observations of a plan."""

    kind: str
    """`tracking`, `inverse_dynamics`, `actions`, `targets`, `action_head`, one of the task, or an import path; each has
    its own fields."""
    interpolation: Literal["linear", "hermite"] = "linear"
    """Interpolation between two plan steps: straight lines, or cubics that also match the planned velocities."""
    pace: float = 1.0
    """Speed at which a plan is followed, relative to the planned speed; above 1 if the behavior in the data is slow."""
    max_lag: float = 0.0
    """The plan pauses while the distance of the position from it is greater than this, in units, and is given up if
    that lasts; 0 never pauses."""

    def __post_init__(self) -> None:
        require(0 < self.pace < math.inf, "planning.controller.pace", "a positive number", self.pace)
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
    """Controller: the action that a model predicts from the present observation and the next planned one."""

    kind: Literal["inverse_dynamics"] = "inverse_dynamics"


@config_dataclass
class Actions:
    """Controller: the planned actions, unchanged."""

    kind: Literal["actions"] = "actions"


@config_dataclass
class Targets(_Following):
    """Controller: the planned values of observation columns, for actions that are targets of what is observed."""

    kind: Literal["targets"] = "targets"
    columns: tuple[int, ...] = ()
    """Observation columns whose planned values are the action, in the order of its columns, such as joint angles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            min(self.columns, default=0) >= 0,
            "planning.controller.columns",
            "observation columns, counted from 0",
            self.columns,
        )


@config_dataclass
class HeadControl:
    """Controller: the action that a model predicts from the present observation and chosen planned ones.

    With several candidates that are averaged, it is the average of their actions. Plans are made at every step.
    """

    kind: Literal["action_head"] = "action_head"
    reads: Literal["next", "far", "all"] = "next"
    """The planned observations that the action depends on: that of the first step after now, of the last step, or of
    all steps."""


@config_dataclass
class OwnController(_Following):
    """Controller: one of the task, by name, or one of the user, by an import path such as `my_module:MyController`."""


@config_dataclass
class Never:
    """Replanning: follow each plan to its end."""

    kind: Literal["never"] = "never"
    """`never`, `sooner` or `receding`; each has its own fields."""


@config_dataclass
class Sooner:
    """Replanning: switch to a plan that reaches the goal sooner, and replace plans that cannot be followed."""

    kind: Literal["sooner"] = "sooner"
    """`never`, `sooner` or `receding`; each has its own fields."""
    interval: int = 0
    """Environment steps between two attempts to find a sooner plan; 0 for never."""
    max_deviation: float = 0.7
    """Replan if the distance of the position from the plan is greater than this, in units; 0 for never."""

    def __post_init__(self) -> None:
        require_between(self, "planning.replanning.", interval=(0, MAX_STEPS))
        require(self.max_deviation >= 0, "planning.replanning.max_deviation", "a number >= 0", self.max_deviation)


@config_dataclass
class Receding:
    """Replanning: receding-horizon control; every new plan is followed, for a fixed number of steps."""

    kind: Literal["receding"] = "receding"
    """`never`, `sooner` or `receding`; each has its own fields."""
    interval: int = 1
    """Environment steps for which each plan is followed."""
    warm_start: float = 0.0
    """Warm start: sampling starts from the rest of the previous plan, noised to this share of the diffusion steps; 0
    starts from noise alone."""

    def __post_init__(self) -> None:
        require_between(self, "planning.replanning.", interval=(1, MAX_STEPS))
        require(0 <= self.warm_start <= 1, "planning.replanning.warm_start", "a number in [0, 1]", self.warm_start)


Controlling = Tracking | InverseDynamics | Actions | Targets | HeadControl | OwnController
Replanning = Never | Sooner | Receding


@config_dataclass
class PlanningConfig:
    """The settings of a planner: `diffplan tune` searches them, and `--settings` files contain them."""

    sampling: SamplingConfig = SamplingConfig()
    horizon: HorizonConfig = HorizonConfig()
    selection: SelectionConfig = SelectionConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    condition: ConditionConfig = ConditionConfig()
    controller: Annotated[Controlling, ByKind()] = Tracking()
    """The controller, which turns plans into actions."""
    replanning: Annotated[Replanning, ByKind()] = Sooner()
    """The rule for when a new plan is made and followed."""

    def __post_init__(self) -> None:
        passes = self.sampling.num_steps * self.sampling.num_repeats * self.guidance.num_steps
        require(
            passes <= MAX_PASSES,
            "planning.sampling.num_steps, num_repeats and guidance.num_steps",
            f"a product of at most {MAX_PASSES:_}",
            passes,
        )
        entries = self.horizon.max * self.selection.num_candidates
        require(
            entries <= MAX_ENTRIES,
            "planning.horizon.max and selection.num_candidates",
            f"a product of at most {MAX_ENTRIES:_}",
            entries,
        )
