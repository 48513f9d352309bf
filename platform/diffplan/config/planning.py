"""The settings of planning, apart from the others because searches and settings files hold them alone."""

from __future__ import annotations

from typing import Literal

from diffplan.config.codec import config_dataclass, require


@config_dataclass
class Never:
    """Replanning: follow each plan to its end."""

    kind: Literal["never"] = "never"


@config_dataclass
class Sooner:
    """Replanning: change over to plans that arrive at the goal sooner, and give up plans that cannot be followed."""

    kind: Literal["sooner"] = "sooner"
    interval: int = 0
    """Environment steps between two searches for a sooner plan; 0 never searches."""
    max_deviation: float = 0.7
    """Plan again where the position is further than this from the plan, in units; 0 never does."""


@config_dataclass
class Receding:
    """Replanning: receding-horizon control, a new plan on a timer that is always followed."""

    kind: Literal["receding"] = "receding"
    interval: int = 1
    """Environment steps that each plan is followed for."""
    warm_start: float = 0.0
    """New plans start from the rest of the plan before, which is noised again to this share of the diffusion steps; 0
    plans from scratch."""

    def __post_init__(self) -> None:
        require(self.interval >= 1, "planning.replanning.interval", "at least 1", self.interval)
        require(0 <= self.warm_start <= 1, "planning.replanning.warm_start", "a number in [0, 1]", self.warm_start)


@config_dataclass
class PlanningConfig:
    """How a trained model plans and acts: what `diffplan tune` searches and `--settings` files hold."""

    sampler: Literal["ddim", "ddpm", "dpm_solver"] = "ddim"
    """Reverse process: DDIM, ancestral (DDPM), or DPM-Solver++(2M)."""
    num_sampling_steps: int = 8
    """Denoising steps."""
    step_spacing: Literal["uniform", "log_snr"] = "uniform"
    """Where the denoising steps lie: evenly in diffusion steps, or in the logarithm of the signal-to-noise ratio."""
    num_repeats: int = 1
    """How often each denoising step is taken, with its noise added again in between; more than once makes what is fixed
    in the middle of a plan agree with the rest."""
    temperature: float = 1.0
    """Scale of the initial noise and of the noise that `ddpm` adds."""

    min_horizon: int = 8
    """Shortest horizon to try, in transitions; the shortest that yields a consistent plan is taken."""
    max_horizon: int = 36
    """Longest horizon to try; taken where no plan is consistent."""
    horizon_multiple: int = 4
    """Horizons tried are multiples of this, counted from `min_horizon`."""
    horizon_rule: Literal["auto", "scan", "predict"] = "auto"
    """`scan` plans with every horizon from the shortest up; `predict` begins at the horizon that the checkpoint's
    horizon model expects to be consistent (`diffplan calibrate` fits one) and goes up from there only if it is not;
    `auto` predicts where there is such a model."""
    max_speed_error: float = 10.0
    """A plan is consistent if nowhere |Δposition/Δtime - mean velocity| exceeds this, in units per second."""

    max_departure: float = 0.0
    """A plan is consistent only if it stays this close to where the data have been, or as close as its start and goal
    are, in units of the positions. 0 asks nothing of it, and neither does a checkpoint that does not know where they
    have been (`diffplan calibrate`)."""

    num_candidates: int = 2
    """Plans drawn for each horizon; the best is kept."""
    selection: Literal["consistency", "guide"] = "consistency"
    """Which candidate is best, of those that violate no limit: the most consistent, or, among the consistent ones, the
    one that the guides score highest."""

    guides: tuple[str, ...] = ()
    """What is maximised, summed: each an expression such as `2 * goal_distance() + keep_out([3, 4], 0.5)`, or the
    import path of a guide, such as `my_package.guides:make_guide`. Used where `guidance_scale` is not 0, and by
    `selection`."""
    guidance_scale: float = 0.0
    """Strength of the guides; 0 is none."""
    num_guide_steps: int = 1
    """Gradient steps of the guides in each denoising step."""
    guide_target: Literal["noisy", "denoised", "network"] = "noisy"
    """Where gradients are taken: at the noisy plan; at the estimate of the clean plan, which is moved itself; or at
    that estimate but through the network, moving the noisy plan."""
    guide_scaling: Literal["variance", "none"] = "variance"
    """Whether a gradient step is scaled by the variance of the denoising step."""
    max_guide_gradient: float | None = None
    """Gradients of a plan are scaled down to this norm; None for never."""
    guide_stop_step: int = 0
    """Guides rest below this diffusion step."""
    value: str | None = None
    """A value as one more guide: `actions` or `observations`, what of a plan the value judges that `diffplan calibrate`
    fits; or the checkpoint of a value function (`training.objective value`)."""

    condition_scale: float = 1.0
    """Classifier-free guidance: 0 ignores the condition, 1 follows it, above 1 exaggerates it."""
    target_return: float | None = None
    """Return to ask for, where the network is conditioned on returns."""
    task: int | None = None
    """Task to ask for, where the network is conditioned on tasks."""

    controller: str = "tracking"
    """How plans become actions: `tracking`, `inverse_dynamics`, the planned `actions`, a controller of the task, or an
    import path such as `my_module:MyController`."""
    interpolation: Literal["linear", "hermite"] = "linear"
    """Between two plan steps: straight lines, or cubics that have the planned velocities as well."""
    pace: float = 1.0
    """How many times as fast plans are followed as they were planned: above 1 where the data took their time."""
    position_gain: float = 10.0
    """Tracking: force per unit of position error."""
    velocity_gain: float = 1.0
    """Tracking: force per unit of velocity error."""

    replan_rule: Literal["never", "sooner", "receding"] = "sooner"
    """When a new plan is made and followed: `never` before the end of a plan; where one arrives `sooner`, or the plan
    cannot be followed; or every `replan_interval` steps whatever it is (`receding`)."""
    replan_interval: int = 0
    """Environment steps between two plans; 0 does not plan again while a plan is going well."""
    max_deviation: float = 0.7
    """Plan again where the position is further than this from the plan, in units; 0 never does."""
    max_lag: float = 0.0
    """The plan waits while the position is further than this from it, in units, and is given up if that lasts; 0 never
    waits."""
    warm_start_steps: int = 0
    """Denoising steps of a plan that starts from what is left of the one before; 0 always plans from noise."""
    warm_start_level: float = 0.3
    """How much of the noise the plan before is given again: share of the diffusion steps, in (0, 1]."""

    def __post_init__(self) -> None:
        require(self.min_horizon >= 2, "planning.min_horizon", "at least 2", self.min_horizon)
        require(
            self.max_horizon >= self.min_horizon,
            "planning.max_horizon",
            f"at least planning.min_horizon ({self.min_horizon})",
            self.max_horizon,
        )
        for name in ("horizon_multiple", "num_sampling_steps", "num_repeats", "num_candidates", "num_guide_steps"):
            require(getattr(self, name) >= 1, f"planning.{name}", "at least 1", getattr(self, name))
        for name in (
            "temperature",
            "guidance_scale",
            "replan_interval",
            "max_speed_error",
            "max_departure",
            "max_deviation",
            "max_lag",
            "guide_stop_step",
            "warm_start_steps",
        ):
            require(getattr(self, name) >= 0, f"planning.{name}", "a number >= 0", getattr(self, name))
        require(self.pace > 0, "planning.pace", "a positive number", self.pace)
        require(
            0 < self.warm_start_level <= 1, "planning.warm_start_level", "a number in (0, 1]", self.warm_start_level
        )
        require(
            self.max_guide_gradient is None or self.max_guide_gradient > 0,
            "planning.max_guide_gradient",
            "a positive number",
            self.max_guide_gradient,
        )

    @property
    def replanning(self) -> Never | Sooner | Receding:
        """The rule of replanning."""
        if self.replan_rule == "never":
            return Never()
        if self.replan_rule == "receding" or (self.warm_start_steps and self.replan_interval):
            warm_start = self.warm_start_level if self.warm_start_steps else 0.0
            return Receding(interval=max(self.replan_interval, 1), warm_start=warm_start)
        return Sooner(interval=self.replan_interval, max_deviation=self.max_deviation)

    @property
    def horizons(self) -> tuple[int, ...]:
        """Horizons to try, ascending."""
        return tuple(range(self.min_horizon, self.max_horizon + 1, self.horizon_multiple))
