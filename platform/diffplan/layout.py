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
        has_flag: whether the last column is 1 while the episode goes on, and -1 after it has terminated.
    """

    observation_dim: int
    action_dim: int = 0
    has_flag: bool = False

    @classmethod
    def make(
        cls,
        columns: Literal["observations", "actions_observations"],
        observation_dim: int,
        action_dim: int,
        *,
        has_flag: bool = False,
    ) -> Layout:
        """The layout that a window config asks for."""
        return cls(observation_dim, action_dim if columns == "actions_observations" else 0, has_flag)

    @property
    def transition_dim(self) -> int:
        """Size of a transition."""
        return self.action_dim + self.observation_dim + self.has_flag

    @property
    def actions(self) -> slice:
        """Columns of the action."""
        return slice(0, self.action_dim)

    @property
    def observations(self) -> slice:
        """Columns of the observation."""
        return slice(self.action_dim, self.action_dim + self.observation_dim)

    @property
    def flag(self) -> int:
        """Column of the flag; raises `ValueError` where there is none."""
        if not self.has_flag:
            raise ValueError("layout: expected a flag for the end of episodes, got none")
        return self.transition_dim - 1

    def observation_columns(self, columns: tuple[int, ...]) -> list[int]:
        """Columns of a transition for columns of an observation."""
        return [self.action_dim + column for column in columns]
