"""A mixture of behaviors: each episode is acted by one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffplan.tasks.contracts import Behavior


class MixtureBehavior:
    """Chooses a component for each episode, with given probabilities.

    Args:
        components: the behaviors.
        weights: their probabilities, which add up to 1.
        column_sizes: further columns of any component, and their sizes; 0 for a single number.
    """

    def __init__(
        self, components: Sequence[Behavior], weights: Sequence[float], column_sizes: Mapping[str, int]
    ) -> None:
        self._components = components
        self._cumulative = np.cumsum(weights)
        self._column_sizes = column_sizes

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes and choose a component for each."""
        draws = np.array([generator.random() for generator in generators])
        chosen = np.minimum(np.searchsorted(self._cumulative, draws, side="right"), len(self._components) - 1)
        self._members = [np.flatnonzero(chosen == c) for c in range(len(self._components))]
        for component, members in zip(self._components, self._members, strict=True):
            if len(members):
                component.reset(observations[members], [generators[int(i)] for i in members])

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions of each environment's component."""
        actions: np.ndarray | None = None
        for component, members in zip(self._components, self._members, strict=True):
            if len(members):
                part = component.act(observations[members])
                if actions is None:
                    actions = np.zeros((len(observations), part.shape[1]), dtype=np.float32)
                actions[members] = part
        assert actions is not None
        return actions

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of any component, NaN in the episodes of components that lack them."""
        num_envs = sum(len(members) for members in self._members)
        shapes = {name: (num_envs, size) if size else (num_envs,) for name, size in self._column_sizes.items()}
        columns = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        for component, members in zip(self._components, self._members, strict=True):
            for name, values in (component.columns() if len(members) else {}).items():
                columns[name][members] = values
        return columns
