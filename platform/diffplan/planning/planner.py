"""From observations and goals to plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffplan.checkpoint import load_checkpoint
from diffplan.config import Config, PlanningConfig
from diffplan.data.normalization import Normalizer
from diffplan.diffusion.constraints import Constraints, fix, no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import GoalGuide, Guidance
from diffplan.diffusion.samplers import Callback, sample_ddim, sample_ddpm
from diffplan.errors import PlanningError
from diffplan.layout import Layout
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.planning.horizon import compute_speed_errors
from diffplan.types import Plan


class Planner:
    """Plans with a trained model, for a batch of environments at once.

    Args:
        config: the experiment that the model was trained in.
        layout: columns of a transition.
        denoiser: the model.
        normalizer: between environment units and model space.
        settings: how to plan; None for those of the config.

    Raises:
        PlanningError: settings that the model cannot serve.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        denoiser: Denoiser,
        normalizer: Normalizer,
        settings: PlanningConfig | None = None,
    ) -> None:
        self.config = config
        self.layout = layout
        self.denoiser = denoiser.eval()
        self.normalizer = normalizer
        self.settings = config.planning if settings is None else settings
        self._check_settings()

    def _check_settings(self) -> None:
        shortest = self.config.network.min_horizon
        if self.settings.min_horizon < shortest:
            raise PlanningError(
                f"planning.min_horizon: expected at least {shortest}, the shortest plan that this network can hold, "
                f"got {self.settings.min_horizon}"
            )
        steps = self.config.diffusion.num_diffusion_steps
        if self.settings.sampler == "ddim" and self.settings.num_sampling_steps > steps:
            raise PlanningError(
                f"planning.num_sampling_steps: expected at most {steps}, the diffusion steps of this model, "
                f"got {self.settings.num_sampling_steps}"
            )

    @property
    def step_seconds(self) -> float:
        """Seconds between two steps of a plan."""
        return self.config.windows.stride * self.config.env.step_seconds

    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray,
        generator: torch.Generator,
        *,
        max_speed_errors: np.ndarray | None = None,
        keep_denoising: bool = False,
    ) -> list[Plan]:
        """Plan from observations to goals.

        For each environment the shortest of the settings' horizons that yields a consistent plan is taken; if none
        does, the longest.

        Args:
            observations: float[batch, observation_dim] in environment units.
            goals: float[batch, len(position_columns)], positions to end at.
            generator: source of the noise.
            max_speed_errors: float[batch], what counts as consistent in each environment; None for the settings'.
            keep_denoising: keep the way from noise to plan as well.

        Returns:
            A plan for each environment.

        Raises:
            PlanningError: arrays of the wrong shape or with values that are not finite.
        """
        observations, goals = self._checked(observations, goals)
        if max_speed_errors is None:
            max_speed_errors = np.full(len(observations), float(self.settings.max_speed_error))
        plans: list[Plan | None] = [None] * len(observations)
        waiting = np.arange(len(observations))
        for horizon in self.settings.horizons:
            found = self.plan_horizon(
                observations[waiting],
                goals[waiting],
                horizon,
                generator,
                max_speed_errors=max_speed_errors[waiting],
                keep_denoising=keep_denoising,
            )
            for i, plan in zip(waiting, found, strict=True):
                plans[i] = plan
            waiting = np.array([i for i, plan in zip(waiting, found, strict=True) if not plan.consistent], dtype=int)
            if not waiting.size:
                break
        return [plan for plan in plans if plan is not None]

    def plan_horizon(
        self,
        observations: np.ndarray,
        goals: np.ndarray,
        horizon: int,
        generator: torch.Generator,
        *,
        max_speed_errors: np.ndarray | None = None,
        keep_denoising: bool = False,
    ) -> list[Plan]:
        """Plan with one given horizon; the most consistent of the candidates is kept. See `plan`."""
        observations, goals = self._checked(observations, goals)
        if max_speed_errors is None:
            max_speed_errors = np.full(len(observations), float(self.settings.max_speed_error))
        num_candidates = self.settings.num_candidates
        starts = np.repeat(observations, num_candidates, axis=0)
        goals = np.repeat(goals, num_candidates, axis=0)
        kept: list[Tensor] = []
        x = self._sample(
            self._make_constraints(starts, goals, horizon),
            self._make_guidance(goals),
            generator,
            (lambda state: kept.append(state.x_noisy)) if keep_denoising else None,
        )
        transitions = self.normalizer.unnormalize(x).cpu().numpy()
        plans = transitions[:, :, self.layout.observations]
        # Exactly, where normalising and back would lose the last bits.
        plans[:, 0] = starts
        goal_columns = list(self.config.windows.goal_columns)
        plans[:, -1, goal_columns] = self._last_observations(starts, goals)[:, goal_columns]
        errors = compute_speed_errors(
            plans, self.config.env.position_columns, self.config.env.velocity_columns, self.step_seconds
        )
        best = errors.reshape(-1, num_candidates).argmin(axis=1) + np.arange(len(observations)) * num_candidates
        denoising = None
        if keep_denoising:
            noisy = self.normalizer.unnormalize(torch.stack(kept, dim=1)).cpu().numpy()
            denoising = noisy[:, :, :, self.layout.observations]
        return [
            Plan(
                observations=plans[i],
                actions=transitions[i][:, self.layout.actions] if self.layout.action_dim else None,
                stride=self.config.windows.stride,
                speed_error=float(errors[i]),
                consistent=bool(errors[i] <= limit),
                denoising=None if denoising is None else denoising[i],
            )
            for i, limit in zip(best, max_speed_errors, strict=True)
        ]

    def _sample(
        self,
        constraints: Constraints,
        guidance: Guidance | None,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        settings = self.settings
        if settings.sampler == "ddpm":
            return sample_ddpm(
                self.denoiser,
                constraints,
                generator,
                guidance=guidance,
                temperature=settings.temperature,
                callback=callback,
            )
        return sample_ddim(
            self.denoiser,
            constraints,
            generator,
            settings.num_sampling_steps,
            guidance=guidance,
            temperature=settings.temperature,
            callback=callback,
        )

    def _make_constraints(self, observations: np.ndarray, goals: np.ndarray, horizon: int) -> Constraints:
        """Fix the first observation, and the goal columns of the last step."""
        layout = self.layout
        last = self._last_observations(observations, goals)
        constraints = no_constraints(len(observations), horizon, layout.transition_dim)
        start_columns = range(layout.action_dim, layout.transition_dim)
        constraints = fix(constraints, 0, start_columns, self._normalized_observations(observations))
        goal_columns = self.config.windows.goal_columns
        values = self._normalized_observations(last)[:, list(goal_columns)]
        return fix(constraints, -1, layout.observation_columns(goal_columns), values)

    def _last_observations(self, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Observations that plans end on: the goals, and 0 in every column that is no position."""
        last = np.zeros_like(observations)
        last[:, list(self.config.env.position_columns)] = goals
        return last

    def _normalized_observations(self, observations: np.ndarray) -> Tensor:
        transitions = np.zeros((len(observations), self.layout.transition_dim), dtype=np.float32)
        transitions[:, self.layout.observations] = observations
        return torch.from_numpy(self.normalizer.normalize(transitions)[:, self.layout.observations])

    def _make_guidance(self, goals: np.ndarray) -> Guidance | None:
        if self.settings.guidance_scale == 0:
            return None
        columns = self.layout.observation_columns(self.config.env.position_columns)
        guide = GoalGuide(columns, torch.from_numpy(goals))
        return Guidance(guide, self.normalizer.unnormalize, self.settings.guidance_scale, self.settings.num_guide_steps)

    def _checked(self, observations: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        observations = np.asarray(observations, dtype=np.float32)
        goals = np.asarray(goals, dtype=np.float32)
        goal_dim = len(self.config.env.position_columns)
        if observations.ndim != 2 or observations.shape[1] != self.layout.observation_dim:
            raise PlanningError(
                f"observations: expected shape (batch, {self.layout.observation_dim}), got {observations.shape}"
            )
        if goals.shape != (len(observations), goal_dim):
            raise PlanningError(f"goals: expected shape ({len(observations)}, {goal_dim}), got {goals.shape}")
        if not (np.isfinite(observations).all() and np.isfinite(goals).all()):
            raise PlanningError("observations and goals: expected finite numbers, got NaN or infinity")
        return observations, goals


def load_planner(path: str | Path, settings: PlanningConfig | None = None) -> Planner:
    """A planner from a checkpoint directory.

    Args:
        path: the checkpoint.
        settings: how to plan; None for the settings of the checkpoint's config.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
        PlanningError: settings that the model cannot serve.
    """
    checkpoint = load_checkpoint(path)
    network = TemporalUnet(checkpoint.layout.transition_dim, checkpoint.config.network)
    network.load_state_dict(checkpoint.weights)
    denoiser = Denoiser.make(network, checkpoint.config.diffusion)
    return Planner(checkpoint.config, checkpoint.layout, denoiser, checkpoint.normalizer, settings)


def with_settings(planner: Planner, **changes: object) -> Planner:
    """The same model planning with some settings changed."""
    return Planner(
        planner.config,
        planner.layout,
        planner.denoiser,
        planner.normalizer,
        replace(planner.settings, **changes),  # type: ignore[arg-type]
    )
