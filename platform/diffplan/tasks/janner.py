"""Settings that the published rows of Janner et al. 2022 have in common.

Source: `diffuser/utils/training.py` of the code release, and the class `Trainer` on another of its branches, which has
the same numbers.
"""

from __future__ import annotations

from diffplan.config import HorizonConfig, PlanningConfig, SamplingConfig, SelectionConfig, TrainingConfig


def make_janner_training(*, num_steps: int, learning_rate: float = 2e-4) -> TrainingConfig:
    """The training of a published row: Adam at a constant rate, two batches of 32 per step, no clipping, float32."""
    return TrainingConfig(
        num_steps=num_steps,
        batch_size=32,
        accumulation_steps=2,
        optimizer="adam",
        learning_rate=learning_rate,
        weight_decay=0.0,
        lr_schedule="constant",
        num_warmup_steps=0,
        max_gradient_norm=None,
        ema_decay=0.995,
        ema_start_step=2_000,
        ema_interval=10,
        precision="float32",
        log_interval=100,
        checkpoint_interval=10_000,
        picture_interval=10_000,
    )


def make_janner_planning(
    *, horizon: int, num_diffusion_steps: int, max_speed_error: float | None = None
) -> PlanningConfig:
    """The planning of a published row, apart from guide and controller: DDPM with all steps, one fixed horizon."""
    return PlanningConfig(
        sampling=SamplingConfig(sampler="ddpm", num_steps=num_diffusion_steps),
        horizon=HorizonConfig(min=horizon, max=horizon, multiple=1, max_speed_error=max_speed_error),
        selection=SelectionConfig(num_candidates=1),
    )
