"""Which columns of a transition are action and which are observation; decided here only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """Columns of a transition: the action (if planned at all) and then the observation, as in Janner et al. 2022.

    Attributes:
        observation_dim: size of an observation.
        action_dim: size of an action, 0 where plans hold observations only.
    """

    observation_dim: int
    action_dim: int = 0

    @classmethod
    def make(
        cls, columns: Literal["observations", "actions_observations"], observation_dim: int, action_dim: int
    ) -> Layout:
        """The layout that a window config asks for."""
        return cls(observation_dim, action_dim if columns == "actions_observations" else 0)

    @property
    def transition_dim(self) -> int:
        """Size of a transition."""
        return self.action_dim + self.observation_dim

    @property
    def actions(self) -> slice:
        """Columns of the action."""
        return slice(0, self.action_dim)

    @property
    def observations(self) -> slice:
        """Columns of the observation."""
        return slice(self.action_dim, self.transition_dim)

    def observation_columns(self, columns: tuple[int, ...]) -> list[int]:
        """Columns of a transition for columns of an observation."""
        return [self.action_dim + column for column in columns]
