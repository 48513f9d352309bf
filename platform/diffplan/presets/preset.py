"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from diffplan.config import Config
from diffplan.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A complete experiment, and the sizes of its environment.

    The sizes stand here so that a preset can be looked at without making its environment, or having its data.

    Attributes:
        config: the experiment.
        observation_dim: size of an observation.
        action_dim: size of an action.
    """

    config: Config
    observation_dim: int
    action_dim: int

    @property
    def layout(self) -> Layout:
        """Columns of a transition."""
        return Layout.make(self.config.windows.columns, self.observation_dim, self.action_dim)
