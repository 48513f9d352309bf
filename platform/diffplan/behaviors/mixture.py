"""A mixture of behaviors: each episode is acted by one of them, or by one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffplan.behaviors.draws import BlockDraws
from diffplan.tasks.contracts import Behavior


class MixtureBehavior:
    """Chooses a component for each episode, with given probabilities, and others later on if asked to.

    Args:
        components: the behaviors.
        weights: their probabilities, which add up to 1.
        column_sizes: further columns of any component, and their sizes; 0 for a single number.
        switch_steps: mean steps after which another component takes over; None: each episode keeps its component.
    """

    def __init__(
        self,
        components: Sequence[Behavior],
        weights: Sequence[float],
        column_sizes: Mapping[str, int],
        switch_steps: int | None = None,
    ) -> None:
        self._components = components
        self._cumulative = np.cumsum(weights)
        self._column_sizes = column_sizes
        self._switching = None if switch_steps is None else _Switching(weights, switch_steps)

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes and choose a component for each."""
        self._chosen = self._choose(np.array([generator.random() for generator in generators]))
        if self._switching is None:
            for component, members in self._acting():
                component.reset(observations[members], [generators[int(i)] for i in members])
            return
        # Generators of their own, or what one component draws would depend on when others act.
        spawned = [generator.spawn(len(self._components) + 1) for generator in generators]
        for c, component in enumerate(self._components):
            component.reset(observations, [own[c] for own in spawned])
        self._switching.reset([own[-1] for own in spawned])

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions of each environment's component, float32[num_envs, action_dim]."""
        if self._switching is not None:
            return self._act_by_turns(observations, self._switching)
        actions: np.ndarray | None = None
        for component, members in self._acting():
            part = component.act(observations[members])
            if actions is None:
                actions = np.zeros((len(observations), part.shape[1]), dtype=np.float32)
            actions[members] = part
        assert actions is not None
        return actions

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of any component, NaN where a component acts that lacks them."""
        num_envs = len(self._chosen)
        shapes = {name: (num_envs, size) if size else (num_envs,) for name, size in self._column_sizes.items()}
        columns = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        for component, members in self._acting():
            for name, values in component.columns().items():
                columns[name][members] = values if self._switching is None else values[members]
        return columns

    def _act_by_turns(self, observations: np.ndarray, switching: _Switching) -> np.ndarray:
        """Let all components act in all environments, so that each knows every step, and take actions of the chosen."""
        due, draws = switching.next()
        before = self._chosen
        self._chosen = np.where(due, self._choose(draws), before)
        parts = []
        for c, component in enumerate(self._components):
            taken = (self._chosen == c) & (before != c)
            take_over = getattr(component, "take_over", None)
            if take_over is not None and taken.any():
                take_over(observations, taken)
            parts.append(component.act(observations))
        return np.stack(parts)[self._chosen, np.arange(len(observations))].astype(np.float32)

    def _choose(self, draws: np.ndarray) -> np.ndarray:
        """Components int[num_envs] from uniform draws in [0, 1)."""
        return np.minimum(np.searchsorted(self._cumulative, draws, side="right"), len(self._components) - 1)

    def _acting(self) -> list[tuple[Behavior, np.ndarray]]:
        """The components that act somewhere, each with its environments."""
        members = [np.flatnonzero(self._chosen == c) for c in range(len(self._components))]
        return [(part, found) for part, found in zip(self._components, members, strict=True) if len(found)]


class _Switching:
    """When components are drawn anew.

    They are drawn from all components, by weight, so that each acts in its share of the steps. A draw hits another one
    with probability 1 - sum of squared weights; draws are that much more frequent, up to one at each step.
    """

    def __init__(self, weights: Sequence[float], switch_steps: int) -> None:
        hit = 1 - sum(weight * weight for weight in weights)
        self._rate = min(1.0, 1 / max(switch_steps * hit, 1.0))

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes; their first component is not drawn here."""
        self._draws = BlockDraws(generators, lambda generator, shape: generator.random(shape), 2)
        self._begun = False

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """Where a component is to be drawn before this step, bool[num_envs], and the uniform draws for it."""
        draws = self._draws.next()
        due = (draws[:, 0] < self._rate) & self._begun
        self._begun = True
        return due, draws[:, 1]
