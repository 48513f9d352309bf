"""Samplers: from noise to trajectories, with any denoiser.

A sampler is a function; all share one loop and differ in their denoising step. Notation: a = sqrt(alpha_bar) and
s = sqrt(1 - alpha_bar) at the present step, a' and s' at the next, λ = log(a / s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.diffusion.constraints import Constraints
from diffplan.diffusion.guidance import Guidance
from diffplan.diffusion.schedule import NoiseSchedule


@runtime_checkable
class Denoises(Protocol):
    """The interface of a model for samplers; see `Denoiser`."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        ...

    def __call__(self, x_noisy: Tensor, diffusion_step: int, lengths: Tensor | None = None) -> Tensor:
        """The denoised trajectories."""
        ...


@dataclass(frozen=True)
class SamplingState:
    """The argument of a callback after each denoising step.

    Attributes:
        index: number of the denoising step, from 0.
        diffusion_step: the diffusion step that was denoised.
        x_noisy: the trajectories after the step, in model space.
        denoised: the estimate of the clean trajectories in the step.
    """

    index: int
    diffusion_step: int
    x_noisy: Float[Tensor, "batch horizon transition"]
    denoised: Float[Tensor, "batch horizon transition"]


Callback = Callable[[SamplingState], None]


@dataclass(frozen=True)
class _Step:
    """One denoising step: alpha_bar at the present and at the next step, the estimate, and the previous step."""

    alpha_bar: float
    next_alpha_bar: float
    x: Tensor
    denoised: Tensor
    previous: _Step | None

    @property
    def variance(self) -> float:
        """Variance of q(x_next | x, x_clean); Ho et al. 2020, eq. 7."""
        return (1 - self.next_alpha_bar) / (1 - self.alpha_bar) * (1 - self.alpha_bar / self.next_alpha_bar)


def _ancestral(eta: float) -> Callable[[_Step], tuple[Tensor, float]]:
    """Song et al. 2021 (DDIM), eq. 12: at eta 1 the posterior of DDPM, at eta 0 no noise is added."""

    def take(step: _Step) -> tuple[Tensor, float]:
        std = eta * step.variance**0.5
        noise_share = max(1 - step.next_alpha_bar - std**2, 0.0) ** 0.5 / (1 - step.alpha_bar) ** 0.5
        clean_share = step.next_alpha_bar**0.5 - noise_share * step.alpha_bar**0.5
        return clean_share * step.denoised + noise_share * step.x, std

    return take


def _dpm_solver(step: _Step) -> tuple[Tensor, float]:
    """Lu et al. 2022 (DPM-Solver++), Alg. 2 (2M); the first and the last step are of first order, as in the source."""
    if step.next_alpha_bar == 1:
        return step.denoised, 0.0
    log_snr, next_log_snr = _log_snr(step.alpha_bar), _log_snr(step.next_alpha_bar)
    width = next_log_snr - log_snr
    estimate = step.denoised
    if step.previous is not None:
        ratio = (log_snr - _log_snr(step.previous.alpha_bar)) / width
        estimate = (1 + 0.5 / ratio) * step.denoised - (0.5 / ratio) * step.previous.denoised
    noise_share = ((1 - step.next_alpha_bar) / (1 - step.alpha_bar)) ** 0.5
    clean_share = step.next_alpha_bar**0.5 * -torch.expm1(torch.tensor(-width, dtype=torch.float64)).item()
    return clean_share * estimate + noise_share * step.x, 0.0


def _log_snr(alpha_bar: float) -> float:
    return 0.5 * torch.logit(torch.tensor(alpha_bar, dtype=torch.float64)).item()


def sample_ddpm(
    denoiser: Denoises,
    constraints: Constraints,
    generator: torch.Generator,
    steps: int | Sequence[int] | None = None,
    *,
    initial: Float[Tensor, "batch horizon transition"] | None = None,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    repeats: int = 1,
    callback: Callback | None = None,
) -> Float[Tensor, "batch horizon transition"]:
    """Ancestral sampling, by default through all diffusion steps; see `sample_ddim`.

    Source: Ho et al. 2020, Alg. 2.
    """
    steps = denoiser.schedule.num_diffusion_steps if steps is None else steps
    return _sample(
        _ancestral(1.0), denoiser, constraints, generator, steps, initial, guidance, temperature, repeats, callback
    )


def sample_ddim(
    denoiser: Denoises,
    constraints: Constraints,
    generator: torch.Generator,
    steps: int | Sequence[int],
    *,
    initial: Float[Tensor, "batch horizon transition"] | None = None,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    repeats: int = 1,
    callback: Callback | None = None,
) -> Float[Tensor, "batch horizon transition"]:
    """Deterministic sampling through a subset of the diffusion steps.

    Source: Song et al. 2021 (DDIM), eq. 12 with eta 0.

    Args:
        denoiser: the model.
        constraints: fixed entries and bounds; they hold after every step. Their shape is that of the batch.
        generator: source of the noise.
        steps: the diffusion steps to denoise at, descending; or their number, for even spacing.
        initial: clean trajectories to start from, noised to the first of the steps (warm start); None for noise alone.
        guidance: a guide and its settings.
        temperature: scale of the initial noise and of all noise added later.
        repeats: repetitions of each step, with the noise added again in between. More than one makes fixed entries in
            the middle of a trajectory consistent with the rest. Source: Lugmayr et al. 2022 (RePaint), Alg. 1.
        callback: called after each step.

    Returns:
        Trajectories in model space.

    Raises:
        ValueError: steps outside the schedule, or not in descending order.
    """
    return _sample(
        _ancestral(0.0), denoiser, constraints, generator, steps, initial, guidance, temperature, repeats, callback
    )


def sample_dpm_solver(
    denoiser: Denoises,
    constraints: Constraints,
    generator: torch.Generator,
    steps: int | Sequence[int],
    *,
    initial: Float[Tensor, "batch horizon transition"] | None = None,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    repeats: int = 1,
    callback: Callback | None = None,
) -> Float[Tensor, "batch horizon transition"]:
    """Deterministic sampling of second order, DPM-Solver++(2M); see `sample_ddim`."""
    return _sample(
        _dpm_solver, denoiser, constraints, generator, steps, initial, guidance, temperature, repeats, callback
    )


SAMPLERS = {"ddim": sample_ddim, "ddpm": sample_ddpm, "dpm_solver": sample_dpm_solver}
"""Samplers by their names in the config."""


@torch.no_grad()
def _sample(
    take_step: Callable[[_Step], tuple[Tensor, float]],
    denoiser: Denoises,
    constraints: Constraints,
    generator: torch.Generator,
    steps: int | Sequence[int],
    initial: Tensor | None,
    guidance: Guidance | None,
    temperature: float,
    repeats: int,
    callback: Callback | None,
) -> Tensor:
    schedule, values, lengths = denoiser.schedule, constraints.values, constraints.lengths
    steps = schedule.sampling_steps(steps) if isinstance(steps, int) else _checked(steps, schedule)

    def draw() -> Tensor:
        return temperature * torch.randn(values.shape, generator=generator, device=generator.device).to(values)

    def denoise(x: Tensor, step: int) -> Tensor:
        return constraints.project_clean(denoiser(x, step, lengths))

    def advance(x: Tensor, diffusion_step: int, next_step: int, previous: _Step | None) -> tuple[Tensor, _Step]:
        """The trajectories at the next diffusion step, and the denoising step."""
        alpha_bar, next_alpha_bar = schedule.alpha_bar_at(diffusion_step), schedule.alpha_bar_at(next_step)
        gradient = None
        if guidance is not None and guidance.acts_on("network", diffusion_step):
            denoised, gradient = guidance.through(
                lambda leaf: denoise(leaf, diffusion_step), x, diffusion_step, lengths
            )
        else:
            denoised = denoise(x, diffusion_step)
        if guidance is not None and guidance.acts_on("denoised", diffusion_step):
            denoised = guidance.move(denoised, 1 - alpha_bar, -1, lengths, constraints.project_clean)
        step = _Step(alpha_bar, next_alpha_bar, x, denoised, previous)
        mean, std = take_step(step)
        if guidance is not None and step.variance > 0:
            if gradient is not None:
                mean = mean + guidance.factor(step.variance) * gradient
            elif guidance.acts_on("noisy", diffusion_step):
                mean = guidance.move(mean, step.variance, next_step, lengths, constraints.project)
        if std > 0:
            mean = mean + std * draw()
        return constraints.project(mean), step

    x = draw()
    if initial is not None:
        alpha_bar = schedule.alpha_bar_at(steps[0])
        x = alpha_bar**0.5 * initial.to(values) + (1 - alpha_bar) ** 0.5 * x
    x = constraints.project(x)
    previous = None
    for index, (diffusion_step, next_step) in enumerate(zip(steps, [*steps[1:], -1], strict=True)):
        x, step = advance(x, diffusion_step, next_step, previous)
        for _ in range(repeats - 1):
            share = step.alpha_bar / step.next_alpha_bar
            x = constraints.project(share**0.5 * x + (1 - share) ** 0.5 * draw())
            # No previous step: its estimate belongs to another trajectory.
            x, step = advance(x, diffusion_step, next_step, None)
        previous = replace(step, previous=None)  # solvers look back one step, so older ones are dropped
        if callback is not None:
            callback(SamplingState(index, diffusion_step, x, step.denoised))
    return x


def _checked(steps: Sequence[int], schedule: NoiseSchedule) -> list[int]:
    steps = list(steps)
    last = schedule.num_diffusion_steps - 1
    if not steps or steps != sorted(set(steps), reverse=True) or steps[0] > last or steps[-1] < 0:
        raise ValueError(f"steps: expected diffusion steps from {last} to 0, descending, got {steps}")
    return steps
