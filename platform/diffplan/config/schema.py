"""The sections of an experiment's config. Fields are checked when a section is made."""

from __future__ import annotations

import math
from typing import Literal

from diffplan.config.calibration import CalibrationConfig
from diffplan.config.codec import config_dataclass, require, require_between
from diffplan.config.environment import MAX_SEED, CollectionConfig, EnvConfig
from diffplan.config.planning import MAX_STEPS, PlanningConfig
from diffplan.config.windows import WindowConfig

MAX_LEVELS, MAX_CHANNELS = 16, 65_536
"""Levels of a U-Net, and channels of a layer of any network."""


@config_dataclass
class NetworkConfig:
    """The network that denoises trajectories."""

    kind: Literal["unet", "transformer", "mlp"] = "unet"
    """`unet`: temporal U-Net; `transformer`: diffusion transformer over the steps of a trajectory; `mlp`: residual
    perceptron of a whole trajectory, for plans of one short horizon."""
    dim: int = 32
    """Channels of the first level (U-Net), of every layer (transformer) or units of every layer (perceptron); a
    multiple of 8."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """U-Net: channels of each level in units of `dim`."""
    attention: bool = False
    """U-Net: linear attention after the residual blocks of each level."""
    depth: int = 4
    """Transformer: layers; perceptron: residual blocks."""
    num_heads: int = 4
    """Transformer: attention heads; a divisor of `dim`."""
    condition: Literal["none", "returns", "task"] = "none"
    """Condition of the network, for classifier-free guidance: none, the return of the trajectory, or the label of its
    task."""
    num_tasks: int = 0
    """Number of task labels, if the condition is a task."""
    condition_dropout: float = 0.25
    """Share of training examples whose condition is withheld."""
    hidden_dim: int = 256
    """Perceptrons (inverse dynamics, behavior cloning): units of each hidden layer."""

    def __post_init__(self) -> None:
        require(self.dim >= 8 and self.dim % 8 == 0, "network.dim", "a positive multiple of 8", self.dim)
        require(
            len(self.dim_mults) >= 1 and all(m >= 1 for m in self.dim_mults),
            "network.dim_mults",
            "at least one number, all >= 1",
            self.dim_mults,
        )
        require(
            len(self.dim_mults) <= MAX_LEVELS and self.dim * max(self.dim_mults) <= MAX_CHANNELS,
            "network.dim and network.dim_mults",
            f"at most {MAX_LEVELS} levels of at most {MAX_CHANNELS} channels",
            (self.dim, self.dim_mults),
        )
        require_between(self, "network.", depth=(1, 1_000), num_tasks=(0, 1_000_000), hidden_dim=(1, MAX_CHANNELS))
        require(
            self.num_heads >= 1 and (self.kind != "transformer" or self.dim % (2 * self.num_heads) == 0),
            "network.num_heads",
            f"a number whose double divides network.dim ({self.dim})",
            self.num_heads,
        )
        require(
            self.condition != "task" or self.num_tasks >= 1,
            "network.num_tasks",
            "at least 1 where network.condition is task",
            self.num_tasks,
        )
        require(0 <= self.condition_dropout <= 1, "network.condition_dropout", "0 to 1", self.condition_dropout)

    @property
    def min_horizon(self) -> int:
        """Shortest horizon of the network; for a U-Net, one step at its coarsest level."""
        return 2 ** (len(self.dim_mults) - 1) if self.kind == "unet" else 2


@config_dataclass
class DiffusionConfig:
    """The noise schedule, the prediction of the network, and the loss."""

    num_diffusion_steps: int = 32
    """Noise levels in training."""
    schedule: Literal["cosine", "linear", "edm"] = "cosine"
    """Noise schedule."""
    prediction: Literal["clean", "noise", "velocity"] = "clean"
    """What the network predicts."""
    clip_denoised: bool = True
    """Clip estimates of the clean plan to [-1, 1], the range of the data, while sampling; not for `gaussian`
    normalisation, where [-1, 1] is one standard deviation."""
    action_weight: float = 1.0
    """Loss weight of the first action."""
    loss_discount: float = 1.0
    """Loss weight of step k is proportional to this to the power k."""
    column_weights: tuple[float, ...] | None = None
    """Loss weight of each column of a transition (action, then observation); all 1 if not set."""
    snr_weighting: Literal["none", "snr", "min_snr"] = "none"
    """Loss weight of each noise level: weight 1 on the error of the network's prediction (`none`), or a weight on the
    error of the clean plan: the signal-to-noise ratio (`snr`), clipped at 5 (`min_snr`)."""

    def __post_init__(self) -> None:
        require_between(self, "diffusion.", num_diffusion_steps=(1, 100_000))
        require(0 < self.loss_discount <= 1, "diffusion.loss_discount", "a number in (0, 1]", self.loss_discount)
        require(0 < self.action_weight < math.inf, "diffusion.action_weight", "a positive number", self.action_weight)
        require(
            self.column_weights is None
            or (len(self.column_weights) > 0 and all(0 <= weight < math.inf for weight in self.column_weights)),
            "diffusion.column_weights",
            "numbers >= 0, one for each column of a transition",
            self.column_weights,
        )


@config_dataclass
class TrainingConfig:
    """The optimisation. Batch sizes are global: they do not depend on the number of workers."""

    objective: Literal["diffusion", "value", "inverse_dynamics", "behavior_cloning"] = "diffusion"
    """The model to fit: the diffuser, a value function to guide it, inverse dynamics (the action between two
    observations), or a policy by behavior cloning. The last two read pairs of neighbouring steps, whatever
    the settings of `windows`."""
    discount: float = 0.99
    """Discount of the returns that a value function is fitted to."""
    termination_penalty: float = 0.0
    """Subtracted from the last reward of terminated episodes, for a value function; 100 in Janner et al. 2022."""
    return_weight: float = 0.0
    """Diffuser: a window's loss has the weight exp(return_weight * (v - 1)), where v is the discounted return from its
    first step on, 0 for the lowest and 1 for the highest in the data; 0 for equal weights. Source: Lu et al. 2025
    (Diffusion Veteran), where it is 2."""
    num_steps: int = 2_500
    """Optimizer steps."""
    batch_size: int = 64
    """Windows in one forward pass, over all workers."""
    accumulation_steps: int = 1
    """Forward passes in one optimizer step."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Optimizer."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """Decoupled weight decay (AdamW only)."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` decays to zero over the run."""
    num_warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    max_gradient_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None for no limit."""
    ema_decay: float = 0.995
    """Decay of the moving average of the weights; planning uses the average."""
    ema_start_step: int = 100
    """Until this step the average is a copy of the weights."""
    ema_interval: int = 1
    """Steps between two updates of the average."""
    log_interval: int = 50
    """Steps between two logged scalars."""
    checkpoint_interval: int = 500
    """Steps between two checkpoints."""
    picture_interval: int = 1_000
    """Steps between two pictures of sampled plans in TensorBoard; 0 for none."""
    validation_fraction: float = 0.0
    """Share of the episodes held out for validation; their loss is computed with the averaged weights."""
    validation_interval: int = 500
    """Steps between two validations."""
    validation_windows: int = 512
    """Windows in a validation, spread over all horizons; windows and noise are the same in every validation."""
    patience: int = 0
    """Training stops after this number of validations without a new lowest loss; 0 for never."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of forward and backward passes; weights, their average and the loss are always float32. `auto`:
    bfloat16 on GPUs that support it, else float32."""
    compile: Literal["auto", "off", "on", "cuda_graphs"] = "auto"
    """`cuda_graphs` records forward and backward passes as CUDA graphs, on a GPU; `on` also compiles the network with
    torch.compile, which needs a compiler and a minute; `auto`: `cuda_graphs` on GPUs, else `off`, because 1-d
    convolutions gain nothing from compilation on CPUs."""
    seed: int = 0
    """Seed of weights, windows, held-out episodes and noise."""

    def __post_init__(self) -> None:
        require_between(
            self,
            "training.",
            num_steps=(1, MAX_STEPS),
            batch_size=(1, 10_000_000),
            accumulation_steps=(1, 1_000_000),
            ema_interval=(1, MAX_STEPS),
            log_interval=(1, MAX_STEPS),
            checkpoint_interval=(1, MAX_STEPS),
            validation_interval=(1, MAX_STEPS),
            validation_windows=(1, 100_000_000),
            seed=(0, MAX_SEED),
        )
        require(
            0 <= self.validation_fraction < 1,
            "training.validation_fraction",
            "a number in [0, 1)",
            self.validation_fraction,
        )
        require(0 < self.discount <= 1, "training.discount", "a number in (0, 1]", self.discount)
        require(
            0 <= self.termination_penalty < math.inf,
            "training.termination_penalty",
            ">= 0",
            self.termination_penalty,
        )
        require(0 <= self.return_weight <= 100, "training.return_weight", "0 to 100", self.return_weight)
        require(
            self.return_weight == 0 or self.objective == "diffusion",
            "training.return_weight",
            f"0 where training.objective is {self.objective}",
            self.return_weight,
        )
        require(self.patience >= 0, "training.patience", "at least 0", self.patience)
        require(
            self.patience == 0 or self.validation_fraction > 0,
            "training.patience",
            "0 without held-out episodes (training.validation_fraction is 0)",
            self.patience,
        )
        require(0 < self.learning_rate < math.inf, "training.learning_rate", "a positive number", self.learning_rate)
        require(0 <= self.ema_decay < 1, "training.ema_decay", "a number in [0, 1)", self.ema_decay)


@config_dataclass
class SearchConfig:
    """A search over planner settings with a fixed checkpoint."""

    protocols: tuple[str, ...] = ()
    """Protocols that trials are scored on, each with the same number of tuning episodes; all of the task if none are
    given. The objective is the mean over all."""
    objective: str | None = None
    """Metric of an episode to optimise, such as `return`; that of the task if not given."""
    num_trials: int = 16
    """Settings to try."""
    episodes_per_block: int = 20
    """Episodes of each protocol between two reports of a trial; ASHA may stop the trial after each report."""
    num_blocks: int = 4
    """Blocks of a full trial: the highest fidelity."""
    max_concurrent_trials: int = 2
    """Trials that run at once."""
    seed: int = 0
    """Seed of the search and of the tuning episodes."""

    def __post_init__(self) -> None:
        require_between(
            self,
            "search.",
            num_trials=(1, 1_000_000),
            episodes_per_block=(1, 1_000_000),
            num_blocks=(1, 100_000),
            max_concurrent_trials=(1, 100_000),
            seed=(0, MAX_SEED),
        )


@config_dataclass
class Config:
    """A complete experiment."""

    env: EnvConfig
    collection: CollectionConfig = CollectionConfig()
    windows: WindowConfig = WindowConfig()
    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    planning: PlanningConfig = PlanningConfig()
    search: SearchConfig = SearchConfig()

    @property
    def goal_columns(self) -> tuple[int, ...]:
        """Observation columns that a goal fixes at the last step of a plan."""
        return self.env.goal_columns if self.windows.goal_columns is None else self.windows.goal_columns

    @property
    def goal_value_columns(self) -> tuple[int, ...]:
        """Observation columns that a goal gives values for; the other columns of `goal_columns` are fixed to 0."""
        return self.env.goal_columns or self.goal_columns

    def __post_init__(self) -> None:
        require(
            self.windows.min_horizon >= self.network.min_horizon,
            "windows.min_horizon",
            f"at least {self.network.min_horizon}, the shortest plan that network.dim_mults "
            f"{self.network.dim_mults} can hold",
            self.windows.min_horizon,
        )
        require(
            self.training.objective == "diffusion" or self.network.condition == "none",
            "network.condition",
            f"none where training.objective is {self.training.objective}",
            self.network.condition,
        )
        require(
            self.windows.normalization != "gaussian"
            or not self.diffusion.clip_denoised
            or self.training.objective != "diffusion",
            "diffusion.clip_denoised",
            "false where windows.normalization is gaussian, or plans would lie within one standard deviation of the "
            "mean",
            self.diffusion.clip_denoised,
        )
        windows, tried = self.windows, self.planning.horizon
        if windows.offsets is not None or windows.deltas or self.network.kind == "mlp":
            what = "windows.offsets" if windows.offsets is not None else "windows.deltas"
            require(
                windows.min_horizon == windows.max_horizon,
                "windows.max_horizon",
                f"windows.min_horizon ({windows.min_horizon}), for network.kind mlp has one horizon",
                windows.max_horizon,
            )
            require(
                self.training.objective != "diffusion" or tried.min == tried.max == windows.max_horizon,
                "planning.horizon.min and max",
                f"{windows.max_horizon}, the only horizon with "
                f"{'network.kind mlp' if windows.offsets is None and not windows.deltas else what}",
                (tried.min, tried.max),
            )
        relative = set(windows.relative_columns)
        require(
            not relative or windows.deltas or self.training.objective != "diffusion",
            "windows.deltas",
            "true where windows.relative_columns are set",
            windows.deltas,
        )
        require(
            not relative & {*self.env.position_columns, *self.goal_columns},
            "windows.relative_columns",
            "none of env.position_columns and env.goal_columns, which plans give as they are",
            windows.relative_columns,
        )
        require(
            not windows.known_columns or self.network.kind == "mlp" or self.training.objective != "diffusion",
            "network.kind",
            "mlp where windows.known_columns are set",
            self.network.kind,
        )
        require(
            not set(windows.known_columns) & set(self.goal_columns),
            "windows.known_columns",
            f"none of the columns {list(self.goal_columns)}, which a goal fixes at the last step of every window",
            windows.known_columns,
        )
        require(
            windows.offsets is None or not self.env.velocity_columns,
            "windows.offsets",
            "none where env.velocity_columns are known, for consistency is measured between evenly spaced steps",
            windows.offsets,
        )
        require(
            self.planning.horizon.min >= self.network.min_horizon,
            "planning.horizon.min",
            f"at least {self.network.min_horizon}, the shortest plan that network.dim_mults "
            f"{self.network.dim_mults} can hold",
            self.planning.horizon.min,
        )
