"""A policy that was cloned from data, in environment units."""

from __future__ import annotations

import numpy as np
import torch

from diffplan.data.windows.normalization import Normalizer
from diffplan.layout import Layout
from diffplan.networks.policy_network import PolicyNetwork


class ClonedPolicy:
    """Acts as the data did; goal-conditioned if it was trained with goals.

    Args:
        network: the policy in model space.
        layout: columns of a transition.
        normalizer: of a transition.
        goal_columns: observation columns that a goal is made of.
        relative_columns: observation columns that count from the present step, so are 0.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        layout: Layout,
        normalizer: Normalizer,
        goal_columns: tuple[int, ...],
        relative_columns: tuple[int, ...] = (),
    ) -> None:
        self.network = network.eval()
        self._relative_columns = list(relative_columns)
        self.goal_columns = goal_columns
        observations = slice(layout.action_dim, layout.transition_dim)
        self._center, self._scale = normalizer.center[observations], normalizer.scale[observations]
        self._action_center, self._action_scale = normalizer.center[layout.actions], normalizer.scale[layout.actions]

    @torch.no_grad()
    def act(self, observations: np.ndarray, goals: np.ndarray | None = None) -> np.ndarray:
        """Actions.

        Args:
            observations: float[batch, observation_dim].
            goals: float[batch, len(goal_columns)]; None for a policy without goals.

        Returns:
            float32[batch, action_dim].

        Raises:
            ValueError: goals for a policy without goals, or no goals for a goal-conditioned one.
        """
        if (goals is None) != (not self.goal_columns):
            wanted = f"goals of columns {self.goal_columns}" if self.goal_columns else "no goals"
            raise ValueError(f"cloned policy: expected {wanted}, got {'none' if goals is None else 'goals'}")
        columns = list(self.goal_columns)
        told = None
        if goals is not None:
            told = torch.from_numpy((np.asarray(goals) - self._center[columns]) / self._scale[columns]).float()
        observations = np.array(observations)
        observations[:, self._relative_columns] = 0.0
        first = torch.from_numpy((observations - self._center) / self._scale).float()
        return self.network(first, told).numpy() * self._action_scale + self._action_center
